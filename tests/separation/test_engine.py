import math
from typing import Any

import pytest
import torch

from demucs_lightning.models import HTDemucs
from demucs_lightning.separation import BagOfModels, separate
from tests.separation.standins import SOURCES, Identity, noise, stems_of

LENGTHS = [1, 2, 99, 100, 101, 250, 1013]


def kinds():
    """A model of each kind, and a bag of all."""
    models = [Identity(), Identity(16, 3), Identity(fixed=True), Identity(segment=0.037)]
    return [*models, BagOfModels(models, [[1, 2, 0], [0, 1, 1], [3, 0, 1], [1, 1, 1]])]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("shifts", [0, 1, 3])
def test_identity_returns_the_mixture(length, overlap, shifts):
    for model in kinds():
        for batch, batch_size in [(1, 1), (2, 3)]:
            mixture = noise(batch, 2, length)
            before = mixture.clone()
            estimates = separate(
                model, mixture, overlap=overlap, shifts=shifts, batch_size=batch_size
            )
            torch.testing.assert_close(estimates, stems_of(mixture), atol=1e-5, rtol=1e-5)
            assert torch.equal(mixture, before)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("segment", [0.002, 0.033, 0.25, 3])
@pytest.mark.parametrize("batch_size", [2, 4, None])
def test_identity_at_any_segment(length, segment, batch_size):
    mixture, bag = noise(1, 2, length), BagOfModels([Identity(16, 3), Identity(5)])
    estimates = separate(
        bag, mixture, segment=segment, shifts=2, batch_size=batch_size, stems=["vocals", "drums"]
    )
    torch.testing.assert_close(estimates, stems_of(mixture)[:, :2], atol=1e-5, rtol=1e-5)


def test_the_seed_decides_the_shifts_and_nothing_else_does():
    def lengths(seed):
        model = Identity()
        separate(model, noise(1, 2, 150), overlap=0, shifts=40, seed=seed)
        return [size[-1] for size in model.sizes if size[-1] < 100]

    state = torch.get_rng_state()
    assert lengths(0) == lengths(0) != lengths(1)
    assert len(set(lengths(0))) > 20
    assert torch.equal(torch.get_rng_state(), state)


def test_shifts_are_averaged():
    class Delay(Identity):
        """The stems are how many silent samples come first."""

        def forward(self, mixture):
            silent = (mixture[:, :1].cumsum(-1) == 0).sum(-1, keepdim=True)
            return silent[:, :, None].expand(-1, 3, 2, mixture.shape[-1]).float()

    generator = torch.Generator().manual_seed(7)
    delays = torch.randint(501, (200,), generator=generator).float()
    found = separate(Delay(segment=1), noise(1, 2, 50), shifts=200, seed=7)
    torch.testing.assert_close(found, delays.mean().expand(1, 3, 2, 50))


@pytest.mark.parametrize(("shifts", "batch_size"), [(0, 1), (3, 2), (2, 4)])
def test_progress_rises_to_exactly_one(shifts, batch_size):
    for model in kinds():
        parts = []
        settings: Any = {"shifts": shifts, "batch_size": batch_size}
        separate(model, noise(1, 2, 999), **settings, progress=parts.append)
        assert parts == sorted(set(parts))
        assert len(parts) > 3
        assert parts[0] > 0
        assert parts[-1] == 1
    parts = []
    separate(Identity(), noise(1, 2, 50), progress=parts.append)
    assert parts == [1]


def test_stems_come_in_the_order_they_are_asked_for():
    class Numbered(Identity):
        def forward(self, mixture):
            return stems_of(mixture) * torch.arange(1.0, 4)[:, None, None]

    mixture = noise(2, 2, 345)
    whole = separate(Numbered(), mixture, shifts=1)
    for stems in (["vocals"], ["vocals", "drums"], SOURCES):
        indices = [SOURCES.index(name) for name in stems]
        assert torch.equal(separate(Numbered(), mixture, shifts=1, stems=stems), whole[:, indices])


def test_precision_of_the_model_and_of_the_mixture():
    class Layer(Identity):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv1d(2, 2, 3, padding=1)

        def forward(self, mixture):
            return super().forward(self.layer(mixture))

    model, mixture = Layer(), noise(1, 2, 900)
    double = separate(model.double(), mixture)
    single = separate(model.float(), mixture)
    assert double.dtype == single.dtype == torch.float32
    assert 0 < (double - single).abs().max() < 1e-4 * single.abs().max()
    assert not single.requires_grad
    assert separate(model, mixture.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"overlap": 1}, "overlap is 1"),
        ({"overlap": -0.1}, "overlap is -0.1"),
        ({"overlap": math.nan}, "overlap is nan"),
        ({"segment": 0}, "segment is 0"),
        ({"segment": 0.0001}, "segment is 0.0001: that is less than a sample"),
        ({"segment": -3}, "segment is -3"),
        ({"segment": math.nan}, "segment is nan"),
        ({"segment": math.inf}, "segment is inf"),
        ({"shifts": -1}, "shifts is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_out_of_range(settings, key):
    with pytest.raises(ValueError, match=key):
        separate(Identity(), noise(1, 2, 50), **settings)


@pytest.mark.parametrize("shape", [(1, 2, 0), (1, 1, 50), (2, 50)])
def test_unsuitable_mixture(shape):
    with pytest.raises(ValueError, match="mixture is"):
        separate(Identity(), torch.zeros(shape))


def test_a_segment_longer_than_training_is_refused():
    small: Any = {"channels": 8, "nfft": 2048, "depth": 4, "bottom_channels": 16, "t_heads": 2}
    model = HTDemucs(SOURCES, **small, t_layers=1, samplerate=8000, segment=0.5)
    sentence = "segment is 0.6: HTDemucs takes chunks of at most 0.5 seconds, as long as it was"
    for refuses in (model, BagOfModels([model]), BagOfModels([model], segment=0.7)):
        with pytest.raises(ValueError, match=sentence):
            separate(refuses, noise(1, 2, 50), segment=0.6)
    assert separate(model, noise(1, 2, 50), segment=0.5).shape == (1, 3, 2, 50)
