import numpy as np
import pytest
import torch

from demucs_lightning.metrics import new_sdr, si_sdr
from demucs_lightning.metrics.ratios import streamed


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


def test_a_silent_reference_is_scored_by_the_formula():
    silence, sound = torch.zeros(1, 1, 2, 100), torch.ones(1, 1, 2, 100)
    assert new_sdr(silence, silence).item() == 0
    assert new_sdr(silence, sound).item() == pytest.approx(10 * np.log10(1e-7 / 200), rel=1e-5)
    quiet = 1e-5 * sound
    assert new_sdr(quiet, quiet).item() == pytest.approx(10 * np.log10(1.2), rel=1e-5)


@pytest.mark.parametrize("lengths", [[1000], [1, 400, 599], [250] * 4])
def test_pieces_have_the_scores_of_the_whole(lengths):
    references = signals(2, 3, 2, 1000)
    references[1, 2] = 0
    estimates = 0.2 * references + 0.1 * signals(2, 3, 2, 1000, seed=1)
    estimates[0, 0] = 0
    asked = []

    def pieces():
        asked.append(True)
        return zip(references.split(lengths, -1), estimates.split(lengths, -1), strict=True)

    found = streamed(pieces)
    for scores, metric in ((found.nsdr, new_sdr), (found.si_sdr, si_sdr)):
        expected = metric(references, estimates)
        torch.testing.assert_close(scores, expected, rtol=1e-12, atol=0, equal_nan=True)
    assert found.silent.nonzero().tolist() == [[1, 2]]
    assert found.si_sdr.isnan().nonzero().tolist() == [[0, 0], [1, 2]]
    assert len(asked) == 2


def test_scale_invariant_of_what_has_nothing_of_the_reference():
    references, estimates = torch.zeros(2, 1, 1, 1, 2)
    references[..., 0] = estimates[..., 1] = 1
    assert si_sdr(references, estimates).item() == -np.inf


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


def test_scale_invariant_equals_the_formula():
    references = signals(2, 3, 2, 1000)
    estimates = 0.2 * references + 0.1 * signals(2, 3, 2, 1000, seed=1)
    scores = si_sdr(references, estimates)
    assert scores.shape == (2, 3)
    assert scores.dtype == torch.float64
    r, e = references.flatten(2).numpy(), estimates.flatten(2).numpy()
    target = r * np.sum(r * e, -1, keepdims=True) / np.sum(r * r, -1, keepdims=True)
    expected = 10 * np.log10(np.sum(target**2, -1) / np.sum((target - e) ** 2, -1))
    np.testing.assert_allclose(scores, expected, rtol=1e-9)


def test_scale_invariant_has_one_gain_for_all_channels():
    references = torch.zeros(1, 1, 2, 2)
    references[0, 0] = torch.eye(2)  # the gain of (1, 0.5) is 0.75, and its error 0.25 in each
    balance = torch.tensor([1.0, 0.5])[:, None]
    assert si_sdr(references, references * balance).item() == pytest.approx(20 * np.log10(3))
    sound = signals(1, 1, 2, 1000)
    scores = si_sdr(sound, sound + 0.1 * signals(1, 1, 2, 1000, seed=1))
    louder = si_sdr(sound, 7 * (sound + 0.1 * signals(1, 1, 2, 1000, seed=1)))
    assert louder.item() == pytest.approx(scores.item())
    assert si_sdr(sound, -4 * sound).item() == np.inf


def test_scale_invariant_of_silence_is_nan():
    silence, sound = torch.zeros(1, 1, 2, 100), torch.ones(1, 1, 2, 100)
    for references, estimates in ((silence, sound), (sound, silence), (silence, silence)):
        assert si_sdr(references, estimates).isnan().all()


@pytest.mark.parametrize("metric", [new_sdr, si_sdr])
@pytest.mark.parametrize("shape", [(1, 2, 1, 10), (1, 1, 2, 10), (2, 10)])
def test_other_shapes(metric, shape):
    with pytest.raises(ValueError, match="must both be"):
        metric(torch.zeros(1, 2, 2, 10), torch.zeros(shape))
