"""The level that models are used to: mean 0 and deviation 1 of the mono sum of a whole mixture."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

Separation = Callable[[Tensor], Tensor]  # (B, C, T) → (B, S, C, T)

FLOOR = 1e-8  # added to a deviation, so that silence can be divided by it


class Level(NamedTuple):
    """Mean and standard deviation of a mono sum; the deviation is never 0."""

    mean: float
    std: float


STANDARD = Level(0.0, 1.0)


def normalized(fn: Separation) -> Separation:
    """Give `fn` the mixture at mean 0 and deviation 1 of its mono sum, and undo that after.

    Each item of a batch has its own. The mean returns to every stem, as in demucs 4.
    """

    def separation(mixture: Tensor) -> Tensor:
        mono = mixture.mean(dim=1, keepdim=True)
        mean = mono.mean(dim=-1, keepdim=True)
        std = mono.std(dim=-1, keepdim=True, correction=min(1, mixture.shape[-1] - 1)) + FLOOR
        return fn((mixture - mean) / std) * std[:, None] + mean[:, None]

    return separation


def statistics(blocks: Iterable[Tensor]) -> Level:
    """The level of a mixture that comes in blocks (C, t), in one pass and in double precision.

    Sums of squares are those around the mean of each block, put together by Chan, Golub and
    LeVeque's rule (1983): nothing is lost where the mean is great against the deviation.

    Raises ValueError if there is not one sample.
    """
    count, mean, squares = 0, 0.0, 0.0
    for block in blocks:
        size = block.shape[-1]
        if size == 0:
            continue
        mono = block.double().mean(dim=0)
        there = mono.mean()
        apart = there.item() - mean
        squares += (mono - there).square().sum().item() + apart**2 * count * size / (count + size)
        count += size
        mean += apart * size / count
    if count == 0:
        raise ValueError("The mixture is empty: there is nothing to separate.")
    return Level(mean, math.sqrt(squares / max(1, count - 1)) + FLOOR)
