import math

import demucs.apply
import pytest
import torch
from demucs.demucs import Demucs
from demucs.hdemucs import HDemucs
from torch import nn

from demucs_lightning.separation import (
    chunk_batches,
    normalized,
    overlap_add,
    padded,
    separate,
    shifted,
)

SOURCES = ["drums", "bass", "vocals"]
RATE = 1000


class Identity(nn.Module):
    """Every stem is the mixture; wants lengths that are a multiple of `multiple`."""

    samplerate, audio_channels, segment, sources = RATE, 2, 0.1, SOURCES

    def __init__(self, multiple=1, extra=0):
        super().__init__()
        self.multiple, self.extra, self.sizes = multiple, extra, []

    def valid_length(self, length):
        return math.ceil(length / self.multiple) * self.multiple + self.extra

    def forward(self, mixture):
        self.sizes.append(tuple(mixture.shape))
        return mixture[:, None].expand(-1, len(SOURCES), -1, -1)


def noise(batch, length, seed=0):
    return torch.randn(batch, 2, length, generator=torch.Generator().manual_seed(seed))


def stems_of(mixture):
    return mixture[:, None].expand(-1, len(SOURCES), -1, -1)


@pytest.mark.parametrize("length", [1, 2, 99, 100, 101, 250, 1013])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize(
    ("shifts", "batch", "batch_size"), [(0, 1, 1), (0, 2, 3), (2, 1, 4), (1, 2, 1)]
)
def test_identity_returns_the_mixture(length, overlap, shifts, batch, batch_size):
    mixture = noise(batch, length)
    before = mixture.clone()
    estimates = separate(
        Identity(multiple=16, extra=3),
        mixture,
        overlap=overlap,
        shifts=shifts,
        batch_size=batch_size,
    )
    torch.testing.assert_close(estimates, stems_of(mixture), atol=1e-5, rtol=1e-5)
    assert torch.equal(mixture, before)


def test_chunks_are_batched_and_short_ones_go_alone():
    assert list(chunk_batches(350, 100, 75, 2)) == [([0, 75], 100), ([150, 225], 100), ([300], 50)]
    assert list(chunk_batches(100, 100, 25, 8)) == [([0], 100), ([25], 75), ([50], 50), ([75], 25)]
    model = Identity()
    separate(model, noise(2, 350), batch_size=2)
    assert model.sizes == [(4, 2, 100), (4, 2, 100), (2, 2, 50)]


def test_margins_are_the_audio_around_a_chunk():
    seen = []

    class Spy(Identity):
        def forward(self, mixture):
            seen.append(mixture)
            return super().forward(mixture)

    mixture = torch.arange(1.0, 11).expand(1, 2, 10)
    out = padded(Spy(extra=5))(mixture, [0, 4, 8], 2)
    left, middle, right = (chunk[0].tolist() for chunk in seen[0])
    assert left == [0, 0, 1, 2, 3, 4, 5]  # two before, three after
    assert middle == [3, 4, 5, 6, 7, 8, 9]
    assert right == [7, 8, 9, 10, 0, 0, 0]
    assert out[:, 0, 0].tolist() == [[1, 2], [5, 6], [9, 10]]


def test_chunks_cross_fade_in_a_triangle():
    # Each chunk answers with the number of its offset, so the result shows the weights.
    def offsets_of(mixture, offsets=(0,), length=None):
        numbers = torch.tensor(offsets, dtype=torch.float32)[:, None, None, None]
        return numbers.expand(-1, 1, 1, length or mixture.shape[-1])

    out = overlap_add(offsets_of, chunk=4, overlap=0.5)(torch.zeros(1, 1, 6))[0, 0, 0]
    # offsets 0, 2, 4; triangle 1 2 2 1
    expected = [0, 0, 2 * 1 / 3, 2 * 2 / 3, (2 * 2 + 4 * 1) / 3, (2 * 1 + 4 * 2) / 3]
    torch.testing.assert_close(out, torch.tensor(expected))


def test_shifts_depend_on_the_seed_only_and_are_averaged():
    delays = []

    def recorder(mixture):
        delays.append(mixture.shape[-1] - 50)
        assert (mixture[..., : delays[-1]] == 0).all()
        return stems_of(mixture) * delays[-1]

    def run(seed):
        delays.clear()
        generator = torch.Generator().manual_seed(seed)
        out = shifted(recorder, shifts=200, max_shift=7, generator=generator)(noise(1, 50))
        return out, list(delays)

    (first, drawn), (second, again), (_, others) = run(0), run(0), run(1)
    assert torch.equal(first, second)
    assert drawn == again != others
    assert set(drawn) == set(range(8))
    torch.testing.assert_close(first, stems_of(noise(1, 50)) * sum(drawn) / 200)


def test_global_randomness_is_left_alone():
    state = torch.get_rng_state()
    model, mixture = Identity(multiple=32), noise(1, 300)
    separate(model, mixture, shifts=3, seed=5)
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_rises_to_exactly_one():
    parts = []
    separate(Identity(), noise(1, 999), shifts=3, batch_size=2, progress=parts.append)
    assert parts == sorted(parts)
    assert len(set(parts)) == len(parts) > 9
    assert parts[0] > 0
    assert parts[-1] == 1


def test_normalized_gives_standard_audio_and_undoes_it():
    seen = []

    def spy(mixture):
        seen.append(mixture)
        return stems_of(mixture)

    mixture = noise(2, 500) * torch.tensor([0.01, 30.0]).view(2, 1, 1) + 3
    out = normalized(spy)(mixture)
    mono = seen[0].mean(1)
    torch.testing.assert_close(mono.mean(-1), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(mono.std(-1), torch.ones(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(out, stems_of(mixture), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("mixture", [torch.zeros(1, 2, 64), torch.ones(1, 2, 1)])
def test_normalized_silence_and_a_single_sample_stay(mixture):
    torch.testing.assert_close(normalized(stems_of)(mixture), stems_of(mixture))


class AnyLength(HDemucs):
    """The reference takes any length as it is, and says so by having no such method."""

    def valid_length(self, length):
        return length


def small_demucs():
    return Demucs(SOURCES, channels=4, depth=3, lstm_layers=1, samplerate=RATE)


def small_hdemucs():
    return AnyLength(SOURCES, channels=4, nfft=1024, depth=5, norm_starts=2, samplerate=RATE)


@pytest.fixture(scope="module", params=[small_demucs, small_hdemucs])
def model(request):
    torch.manual_seed(0)
    model = request.param()
    model.segment = 0.7
    return model.eval()


@pytest.mark.parametrize(
    ("length", "segment", "overlap"),
    [(300, None, 0.25), (700, None, 0), (2001, None, 0.25), (1555, 0.4, 0.6), (1801, 0.333, 0.1)],
)
def test_equals_apply_model(model, length, segment, overlap):
    mixture = noise(2, length)
    expected = demucs.apply.apply_model(model, mixture, shifts=0, overlap=overlap, segment=segment)
    for batch_size in [1, 3]:
        estimates = separate(
            model, mixture, segment=segment, overlap=overlap, batch_size=batch_size
        )
        assert (estimates - expected).abs().max() < 1e-5 * expected.abs().max()


def test_equals_apply_model_with_shifts(model, monkeypatch):
    mixture, max_shift = noise(1, 900), RATE // 2
    generator = torch.Generator().manual_seed(3)
    delays = torch.randint(max_shift + 1, (2,), generator=generator).tolist()
    draws = iter([max_shift - delay for delay in delays])
    monkeypatch.setattr(demucs.apply.random, "randint", lambda low, high: next(draws))
    expected = demucs.apply.apply_model(model, mixture, shifts=2)
    estimates = separate(model, mixture, shifts=2, seed=3)
    assert (estimates - expected).abs().max() < 1e-5 * expected.abs().max()


def test_precision_of_the_model_and_of_the_mixture(model):
    mixture = noise(1, 900)
    double = separate(model.double(), mixture)
    single = separate(model.float(), mixture)
    assert double.dtype == single.dtype == torch.float32
    assert 0 < (double - single).abs().max() < 1e-4 * single.abs().max()
    assert not single.requires_grad


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"overlap": 1}, "overlap is 1"),
        ({"overlap": -0.1}, "overlap is -0.1"),
        ({"segment": 0}, "segment"),
        ({"segment": -3}, "segment"),
        ({"segment": math.nan}, "segment is nan"),
        ({"segment": math.inf}, "segment is inf"),
        ({"shifts": -1}, "shifts is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_out_of_range(settings, key):
    with pytest.raises(ValueError, match=key):
        separate(Identity(), noise(1, 50), **settings)


@pytest.mark.parametrize("shape", [(1, 2, 0), (1, 1, 50), (2, 50)])
def test_unsuitable_mixture(shape):
    with pytest.raises(ValueError, match="mixture is"):
        separate(Identity(), torch.zeros(shape))
