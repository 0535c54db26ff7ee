import itertools
from typing import Any

import pytest
import torch

from demucs_lightning.separation import (
    BagOfModels,
    Level,
    engine,
    normalized,
    separate,
    statistics,
    stream,
)
from tests.separation.standins import Broken, Identity, Placed, noise

MODELS = {
    "any length": Placed,
    "steps": lambda: Placed(64, 51),
    "fixed": lambda: Placed(fixed=True),
    "bag": lambda: BagOfModels(
        [Placed(), Placed(16, 3, segment=0.23), Placed(fixed=True)],
        [[1, 1, 0], [0, 2, 1], [1, 1, 1]],
    ),
}


def joined(parts):
    return torch.cat(list(parts), dim=-1)


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


@pytest.mark.parametrize("size", [1, 7, 99, 100, 128, 1000, 5000])
@pytest.mark.parametrize("length", [1, 60, 100, 101, 1013])
def test_a_stream_equals_the_whole_at_any_block_size(model, size, length):
    mixture = noise(2, length)
    for shifts, batch_size in [(0, 1), (2, 3)]:
        settings: Any = {"shifts": shifts, "batch_size": batch_size}
        expected = separate(model, mixture[None], **settings)[0]
        found = joined(stream(model, mixture.split(size, dim=-1), **settings))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("overlap", [0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("shifts", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_stream_equals_the_whole_at_any_setting(model, overlap, shifts, batch_size):
    mixture = noise(2, 433)
    for segment in (None, 0.083):
        settings: Any = {
            "overlap": overlap,
            "shifts": shifts,
            "batch_size": batch_size,
            "segment": segment,
            "stems": ["vocals", "bass"],
        }
        expected = separate(model, mixture[None], **settings)[0]
        found = joined(stream(model, mixture.split(61, dim=-1), **settings))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("loudness", [1e-3, 1, 50])
def test_a_stream_has_the_level_of_the_whole(model, loudness):
    mixture = loudness * (noise(2, 1013) + 0.3)
    blocks = mixture.split(97, dim=-1)
    expected = normalized(lambda mixture: separate(model, mixture, shifts=1))(mixture[None])[0]
    found = joined(stream(model, blocks, level=statistics(blocks), shifts=1))
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    apart = joined(stream(model, blocks, level=Level(0.1 * loudness, 2 * loudness), shifts=1))
    assert (apart - expected).abs().max() > 1e-3 * expected.abs().max()


def test_silence_stays_silent(model):
    blocks = [torch.zeros(2, 300)] * 3
    stems = joined(stream(model, blocks, level=statistics(blocks)))
    assert torch.equal(stems, torch.zeros(3, 2, 900))


def test_stems_come_while_the_mixture_goes_on():
    taken = itertools.count()

    def endless():
        for number in taken:
            yield noise(2, 10, seed=number)

    parts = stream(Identity(extra=20), endless(), overlap=0.25)
    first = next(parts)
    assert first.shape == (3, 2, 75)
    assert next(taken) <= 11 + 1  # of 10 samples: the chunk and what follows it
    heard = torch.cat([noise(2, 10, seed=number) for number in range(8)], dim=-1)
    torch.testing.assert_close(first[0], heard[:, :75], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("shifts", "batch_size"), [(0, 1), (3, 1), (2, 3)])
def test_a_few_chunks_are_held_at_a_time(model, shifts, batch_size, monkeypatch):
    held = {"in": 0, "out": 0}

    class Incoming(engine.Incoming):
        def window(self, start, length):
            held["in"] = max(held["in"], self.end - self.begin)
            return super().window(start, length)

    class Outgoing(engine.Outgoing):
        def add(self, parts):
            super().add(parts)
            assert self._sums is not None
            held["out"] = max(held["out"], self._sums.shape[-1])

    monkeypatch.setattr(engine, "Incoming", Incoming)
    monkeypatch.setattr(engine, "Outgoing", Outgoing)
    blocks = noise(2, 7_000).split(50, dim=-1)
    parts = stream(model, blocks, shifts=shifts, batch_size=batch_size)
    longest = max(part.shape[-1] for part in parts)
    chunk = 230 if isinstance(model, BagOfModels) else 100
    assert longest <= chunk * batch_size
    assert held["in"] <= 3 * chunk * batch_size
    assert held["out"] <= 3 * chunk * batch_size


@pytest.mark.parametrize("length", [None, 1, 900, 999, 1500, 20_000])
def test_progress_rises_to_exactly_one_whatever_the_length_is_said_to_be(model, length):
    parts = []
    blocks = noise(2, 999).split(50, dim=-1)
    joined(stream(model, blocks, length=length, shifts=2, progress=parts.append))
    assert parts == sorted(set(parts))
    assert parts[-1] == 1
    assert len(parts) > 3 or length is None


def test_settings_are_checked_before_the_first_block():
    wrong: list[tuple[str, Any]] = [("overlap", 1), ("segment", -1), ("shifts", -1)]
    for name, value in wrong:
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            stream(Broken(), [], **{name: value})
    with pytest.raises(ValueError, match="piano"):
        stream(Broken(), [], stems=["piano"])
    with pytest.raises(ValueError, match="at most 0.1 seconds"):
        stream(Placed(fixed=True), [], segment=0.2)


def test_unsuitable_blocks():
    assert list(stream(Identity(), [torch.zeros(2, 0), torch.ones(2, 5)]))[0].shape == (3, 2, 5)
    for blocks in ([], [torch.zeros(2, 0)]):
        with pytest.raises(ValueError, match="empty"):
            list(stream(Identity(), blocks))
    for shape in [(1, 50), (50,), (1, 2, 50)]:
        with pytest.raises(ValueError, match="block is"):
            list(stream(Identity(), [torch.zeros(shape)]))


def test_gradients_are_left_as_they_were():
    with torch.enable_grad():
        parts = stream(Identity(), noise(2, 300).split(50, dim=-1))
        assert not next(parts).requires_grad
        assert torch.is_grad_enabled()
