"""The bootstrap: how far a mean over tracks would move with other tracks of the same kind.

Tracks are drawn with replacement, and the interval is what the means of such draws cover, corrected
for bias and skewness (BCa: Efron 1987, Better bootstrap confidence intervals). For differences of
two models on the same tracks that is the paired comparison.
"""

import math

import torch
from torch import Tensor

RESAMPLES = 10_000
LEVEL = 0.95
SEED = 0
TOGETHER = 1 << 20  # numbers drawn at a time


def interval(
    values: Tensor, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, float]:
    """The confidence interval of the mean of ``values`` (N,), which are finite.

    The same ``seed`` gives the same interval. NaN for fewer than two values, the value itself where
    all are equal. Raises ValueError where ``level`` isn't between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: it must be between 0 and 1.")
    values = values.double()
    if len(values) < 2:
        return math.nan, math.nan
    if bool((values == values[0]).all()):
        return float(values[0]), float(values[0])
    means = resampled_means(values, resamples=resamples, seed=seed)
    bias, skew = _bias(values, means), _acceleration(values)
    tail = torch.special.ndtri(torch.tensor([(1 - level) / 2, (1 + level) / 2]).double())
    shifted = bias + (bias + tail) / (1 - skew * (bias + tail))
    low, high = means.quantile(torch.special.ndtr(shifted)).tolist()
    return low, high


def resampled_means(values: Tensor, *, resamples: int, seed: int) -> Tensor:
    """The means of ``resamples`` draws of N out of ``values`` (N,), with replacement."""
    generator = torch.Generator().manual_seed(seed)
    count = len(values)
    step = max(1, TOGETHER // count)
    parts = [
        values[torch.randint(count, (min(step, resamples - done), count), generator=generator)]
        for done in range(0, resamples, step)
    ]
    return torch.cat([part.mean(1) for part in parts])


def _bias(values: Tensor, means: Tensor) -> Tensor:
    """How far the median of the draws is from the mean, in standard deviations."""
    mean = values.mean()
    below = (means < mean).double().mean() + (means == mean).double().mean() / 2
    edge = 0.5 / len(means)
    return torch.special.ndtri(below.clamp(edge, 1 - edge))


def _acceleration(values: Tensor) -> Tensor:
    """A sixth of the skewness of the mean, from leaving one value out at a time."""
    centred = values - values.mean()
    return centred.pow(3).sum() / (6 * centred.square().sum().pow(1.5))
