import pytest
import torch

from demucs_lightning.separation import normalized, statistics
from tests.separation.standins import noise, stems_of


def test_normalized_gives_standard_audio_and_undoes_it():
    seen = []

    def spy(mixture):
        seen.append(mixture)
        return stems_of(mixture)

    mixture = noise(2, 2, 500) * torch.tensor([0.01, 30.0]).view(2, 1, 1) + 3
    out = normalized(spy)(mixture)
    mono = seen[0].mean(1)
    torch.testing.assert_close(mono.mean(-1), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(mono.std(-1), torch.ones(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(out, stems_of(mixture), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("mixture", [torch.zeros(1, 2, 64), torch.ones(1, 2, 1)])
def test_normalized_silence_and_a_single_sample_stay(mixture):
    torch.testing.assert_close(normalized(stems_of)(mixture), stems_of(mixture))


@pytest.mark.parametrize("size", [1, 7, 1000, 4096, 10000])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_statistics_are_those_of_the_whole(size, offset):
    mixture = noise(2, 10000).double() * 3e-2 + offset
    mixture[:, 5000:] *= 2  # blocks differ
    mono = mixture.mean(0)
    mean, std = statistics(mixture.split(size, dim=-1))
    assert mean == pytest.approx(mono.mean().item(), rel=1e-12, abs=1e-12)
    assert std == pytest.approx(mono.std().item(), rel=1e-6)


def test_statistics_of_silence_of_a_sample_and_of_nothing():
    assert statistics([torch.zeros(2, 9), torch.zeros(2, 0)]) == (0, 1e-8)
    assert statistics([torch.tensor([[1.0], [2.0]])]) == (1.5, 1e-8)
    with pytest.raises(ValueError, match="empty"):
        statistics([torch.zeros(2, 0)])
