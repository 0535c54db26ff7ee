"""The same weights, settings and shifts as demucs 4: the same stems."""

import copy
import math
from typing import Any

import demucs.apply
import pytest
import torch
from demucs.demucs import Demucs
from demucs.hdemucs import HDemucs
from demucs.htdemucs import HTDemucs

from demucs_lightning import models
from demucs_lightning.separation import BagOfModels, separate, stream
from tests.separation.standins import SOURCES, noise

RATE = 2000


class AnyLength(HDemucs):
    """The reference takes any length as it is, and says so by having no such method."""

    def valid_length(self, length):
        return length


def small_demucs():
    return Demucs(SOURCES, channels=4, depth=3, lstm_layers=1, samplerate=RATE)


def small_hdemucs():
    return AnyLength(SOURCES, channels=4, nfft=1024, depth=5, norm_starts=2, samplerate=RATE)


TRANSFORMER: Any = {
    "channels": 8,
    "nfft": 2048,
    "bottom_channels": 16,
    "t_layers": 1,
    "t_heads": 2,
    "samplerate": RATE,
    "segment": 0.7,
}


def small_htdemucs():
    return HTDemucs(SOURCES, **TRANSFORMER)


def ours(reference):
    """The model that this package separates with, in place of one of the reference."""
    if not isinstance(reference, HTDemucs):
        reference.max_segment = math.inf
        return reference
    model = models.HTDemucs(SOURCES, **TRANSFORMER).eval()
    model.load_state_dict(reference.state_dict())
    return model


def close(estimates, expected):
    return (estimates - expected).abs().max() < 1e-5 * expected.abs().max()


def built(build, seed=0):
    torch.manual_seed(seed)
    model = build()
    model.segment = 0.7
    return model.eval()


@pytest.fixture(scope="module", params=[small_demucs, small_hdemucs, small_htdemucs])
def model(request):
    return built(request.param)


@pytest.fixture
def same_delays(monkeypatch):
    """Make the reference draw the delays that this package draws from a seed."""

    def fix(seed, count):
        generator = torch.Generator().manual_seed(seed)
        delays = torch.randint(RATE // 2 + 1, (count,), generator=generator).tolist()
        draws = iter([RATE // 2 - delay for delay in delays])
        monkeypatch.setattr(demucs.apply.random, "randint", lambda low, high: next(draws))

    return fix


@pytest.mark.parametrize(
    ("length", "segment", "overlap"),
    [(600, None, 0.25), (1400, None, 0), (4001, None, 0.25), (3111, 0.4, 0.6), (3601, 0.333, 0.1)],
)
def test_equals_apply_model(model, length, segment, overlap):
    mixture = noise(2, 2, length)
    expected = demucs.apply.apply_model(model, mixture, shifts=0, overlap=overlap, segment=segment)
    for batch_size in [1, 3]:
        estimates = separate(
            ours(model), mixture, segment=segment, overlap=overlap, batch_size=batch_size
        )
        assert close(estimates, expected)


def test_equals_apply_model_with_shifts(model, same_delays):
    mixture = noise(1, 2, 1800)
    same_delays(seed=3, count=2)
    expected = demucs.apply.apply_model(model, mixture, shifts=2)
    assert close(separate(ours(model), mixture, shifts=2, seed=3), expected)


WEIGHTS = [[1.0, 0.0, 0.5], [1.0, 2.0, 0.0], [0.0, 1.0, 0.25]]


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize(
    ("bag_segment", "segment"), [(None, None), (0.5, None), (0.9, None), (0.5, 0.4)]
)
def test_a_bag_equals_apply_model(weights, bag_segment, segment, same_delays):
    builds = [small_demucs, small_hdemucs, small_htdemucs]
    members = [built(build, seed) for seed, build in enumerate(builds)]
    bag = BagOfModels([ours(copy.deepcopy(m)) for m in members], weights, segment=bag_segment)
    reference = demucs.apply.BagOfModels(members, weights, bag_segment)
    assert [m.segment for m in bag.models] == [m.segment for m in reference.models]

    mixture = noise(1, 2, 2222)
    for shifts in (0, 1):
        same_delays(seed=5, count=3)
        expected = demucs.apply.apply_model(reference, mixture, shifts=shifts, segment=segment)
        settings: Any = {"shifts": shifts, "segment": segment, "seed": 5}
        assert close(separate(bag, mixture, **settings), expected)
        parts = list(stream(bag, mixture[0].split(517, dim=-1), **settings))
        assert close(torch.cat(parts, dim=-1), expected[0])
