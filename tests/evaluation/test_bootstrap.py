import math

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from demucs_lightning.evaluation.bootstrap import interval, resampled_means


def drawn(*shape, seed=0):
    """A skewed distribution of mean 1, as differences of scores with a few outliers are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).exp() / math.exp(0.5)


@pytest.mark.parametrize("count", [5, 14, 50, 300])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_is_that_of_scipy(count, level):
    values = drawn(count, seed=count)
    found = interval(values, level=level, resamples=50_000)
    expected = bootstrap(
        (values.numpy(),),
        np.mean,
        confidence_level=level,
        n_resamples=50_000,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    width = expected.high - expected.low
    np.testing.assert_allclose(found, (expected.low, expected.high), atol=0.06 * width)


def test_covers_the_mean_as_often_as_it_says():
    values = torch.randn(400, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = [interval(row, resamples=1000, seed=index) for index, row in enumerate(values)]
    covered = sum(low < 0 < high for low, high in found) / len(found)
    assert 0.91 < covered < 0.98
    too_low = sum(high < 0 for _, high in found)
    too_high = sum(low > 0 for low, _ in found)
    assert min(too_low, too_high) > 0.15 * (too_low + too_high)


def test_skewness_is_corrected_for():
    """Of skewed values the plain percentiles miss on one side."""
    rows = drawn(300, 25, seed=2)
    corrected, plain = [], []
    for index, row in enumerate(rows):
        corrected.append(interval(row, resamples=1000, seed=index))
        means = resampled_means(row, resamples=1000, seed=index)
        plain.append(means.quantile(torch.tensor([0.025, 0.975]).double()).tolist())
    covered, before = (sum(a < 1 < b for a, b in each) for each in (corrected, plain))
    assert covered > before
    assert covered > 0.86 * len(rows)


def test_draws_are_means_of_the_values():
    values = torch.tensor([1.0, 2, 4], dtype=torch.float64)
    means = resampled_means(values, resamples=5000, seed=0)
    assert means.shape == (5000,)
    possible = torch.cartesian_prod(values, values, values).mean(1).unique()
    torch.testing.assert_close(means.unique(), possible)
    assert means.mean().item() == pytest.approx(7 / 3, abs=0.05)


def test_draws_of_many_values_are_those_of_few():
    """They are drawn in several parts, of which none repeats another."""
    means = resampled_means(drawn(3000), resamples=1000, seed=0)
    assert means.shape == (1000,)
    assert len(means.unique()) == 1000


def test_the_seed_decides():
    values = drawn(20)
    assert interval(values) == interval(values.clone())
    assert interval(values, seed=3) == interval(values, seed=3)
    assert interval(values, seed=3) != interval(values, seed=4)


def test_what_has_no_spread():
    assert interval(torch.full((5,), 0.3)) == (pytest.approx(0.3), pytest.approx(0.3))
    for count in (0, 1):
        assert all(map(math.isnan, interval(torch.ones(count))))


def test_two_values():
    low, high = interval(torch.tensor([1.0, 3.0]))
    assert 1 <= low < high <= 3


@pytest.mark.parametrize("level", [0, 1, -0.5, 95])
def test_levels_are_parts(level):
    with pytest.raises(ValueError, match="between 0 and 1"):
        interval(torch.ones(5), level=level)
