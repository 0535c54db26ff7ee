"""Pictures show what is there: levels where the sound is, one row a stem, on a common scale."""

import math

import pytest
import torch

from demucs_lightning.figures import RANGE, overview, spectrogram

RATE = 8000


def tone(frequency: float, level: float = 1.0) -> torch.Tensor:
    time = torch.arange(RATE * 2) / RATE
    return level * torch.sin(2 * math.pi * frequency * time).expand(2, -1)


def test_spectrogram_is_brightest_at_the_tone():
    image = spectrogram(tone(1000), RATE).axes[0].images[0]
    levels = torch.as_tensor(image.get_array())
    bins = levels.shape[0]
    assert int(levels.mean(1).argmax()) == round(1000 / (RATE / 2) * (bins - 1))
    assert image.get_extent() == pytest.approx((0, 2, 0, RATE / 2000))


def test_overview_has_a_row_for_each_stem_on_one_scale():
    stems = {"loud": tone(500), "soft": tone(500, 0.1), "silent": torch.zeros(2, RATE * 2)}
    figure = overview(stems, RATE)
    waves, specs = figure.axes[0:6:2], figure.axes[1:6:2]
    assert [axes.get_ylabel() for axes in waves] == list(stems)
    assert {axes.get_ylim() for axes in waves} == {(-1.0, 1.0)}
    tops = [float(torch.as_tensor(axes.images[0].get_array()).max()) for axes in specs]
    assert tops[0] - tops[1] == pytest.approx(20, abs=0.1)
    assert {axes.images[0].get_clim() for axes in specs} == {(tops[0] - RANGE, tops[0])}


def test_overview_of_a_few_samples():
    overview({"short": torch.ones(1, 5)}, RATE)
