import numpy as np
import pytest
import torch

from demucs_lightning.metrics import new_sdr


def signals(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def published(references, estimates):
    """The formula of the MDX challenge, one source at a time."""
    scores = np.zeros(references.shape[:2])
    for index in np.ndindex(*scores.shape):
        signal = np.sum(references[index] ** 2) + 1e-7
        scores[index] = 10 * np.log10(
            signal / (np.sum((references - estimates)[index] ** 2) + 1e-7)
        )
    return scores


@pytest.mark.parametrize("level", [1e-5, 1, 100])
@pytest.mark.parametrize("error", [1e-6, 0.3, 5])
def test_equals_the_formula(level, error):
    references = level * signals(2, 3, 2, 1000)
    estimates = references + error * level * signals(2, 3, 2, 1000, seed=1)
    scores = new_sdr(references, estimates)
    assert scores.shape == (2, 3)
    np.testing.assert_allclose(scores, published(references.numpy(), estimates.numpy()), rtol=1e-9)


def test_known_values():
    references = signals(1, 1, 2, 5000)
    assert new_sdr(references, 0.9 * references).item() == pytest.approx(20, abs=1e-4)
    assert new_sdr(references, torch.zeros_like(references)).item() == pytest.approx(0)
    assert new_sdr(references, -references).item() == pytest.approx(-20 * np.log10(2))


def test_silent_reference():
    silence, sound = torch.zeros(1, 1, 2, 100), torch.ones(1, 1, 2, 100)
    assert new_sdr(silence, silence).item() == 0
    assert new_sdr(silence, sound).item() == pytest.approx(10 * np.log10(1e-7 / 200), rel=1e-6)


def test_long_float32_is_summed_in_float64():
    time = torch.arange(3_000_000) / 44100
    references = torch.sin(2 * torch.pi * 440 * time).view(1, 1, 1, -1)
    estimates = references * 0.999
    expected = published(references.double().numpy(), estimates.double().numpy())
    scores = new_sdr(references, estimates)
    assert scores.dtype == torch.float64
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_half_precision_does_not_overflow():
    references = torch.full((1, 1, 2, 100), 1000.0, dtype=torch.float16)
    assert new_sdr(references, references * 0.5).item() == pytest.approx(20 * np.log10(2))


@pytest.mark.parametrize("shape", [(1, 2, 1, 10), (1, 1, 2, 10), (2, 10)])
def test_other_shapes(shape):
    with pytest.raises(ValueError, match="must both be"):
        new_sdr(torch.zeros(1, 2, 2, 10), torch.zeros(shape))
