import numpy as np
import pytest
import torch

from demucs_lightning.metrics import BSSEval, bss_eval, bss_eval_streamed, median
from tests.metrics.references import masked, museval, music, recording, separated

ALIKE = 0.01  # dB
PERFECT = 120  # dB; above it, scores are rounding errors


def compare(references, estimates, *, window=2000, hop=2000, taps=16):
    expected = museval(references, estimates, window=window, hop=hop, taps=taps)
    scores = torch.stack(bss_eval(references, estimates, window=window, hop=hop, taps=taps))
    assert scores.dtype == torch.float64
    # Up to PERFECT only, so that two scores above it are equal.
    np.testing.assert_allclose(scores.clamp(max=PERFECT), expected.clip(max=PERFECT), atol=ALIKE)
    return expected


@pytest.mark.parametrize(
    ("sources", "channels"), [(4, 2), (2, 2), (6, 2), (4, 1), (1, 2), (1, 1), (3, 3)]
)
def test_sources_and_channels(sources, channels):
    references = music(sources, channels, 9000)
    expected = compare(references, separated(references))
    assert expected.shape == (4, sources, 4)  # and 1000 samples left over
    assert np.isfinite(expected[[0, 1, 3]]).all()


@pytest.mark.parametrize(
    ("samples", "window", "hop", "windows"),
    [
        (9000, 2000, 700, 11),
        (9000, 700, 2000, 5),
        (9000, 8999, 3, 1),
        (9000, 8998, 1, 3),
        (2000, 2000, 2000, 1),
        (1500, 2000, 2000, 1),
        (30, 2000, 2000, 1),
        (140_000, 30_000, 30_000, 4),  # several blocks of correlations
    ],
)
def test_windows(samples, window, hop, windows):
    references = music(2, 2, samples)
    expected = compare(references, separated(references), window=window, hop=hop, taps=8)
    assert expected.shape == (4, 2, windows)


def linear(references):
    return separated(references, noise=0)


@pytest.mark.parametrize(("estimated", "best"), [(linear, 100), (separated, 30), (masked, 20)])
def test_a_real_recording_with_all_taps(estimated, best):
    references = recording().double()
    expected = compare(references, estimated(references), window=44100, hop=44100, taps=512)
    assert expected.shape == (4, 4, 6)
    assert 0.5 * best < expected.max() < best


def silenced(references, estimates):
    references[1, :, 2000:4100] = 0
    estimates[2, :, 6000:8000] = 0
    return [1, 3]


def opposite_channels(references, estimates):
    estimates[0, 1, 2000:4000] = -estimates[0, 0, 2000:4000]
    return [1]


def nearly_silent(references, estimates):
    references[1, :, 2001:6000] = 0
    estimates[2, :, 6000:7999] = 0
    return [2]


def one_channel(references, estimates):
    references[1, 1] = 0
    return []


@pytest.mark.parametrize("change", [silenced, opposite_channels, nearly_silent, one_channel])
def test_silence_is_nan_where_museval_has_it(change):
    references = music(3, 2, 9000)
    estimates = separated(references)
    windows = change(references, estimates)
    expected = compare(references, estimates)  # NaN equals NaN
    missing = np.zeros(expected.shape, dtype=bool)
    missing[..., windows] = True
    np.testing.assert_array_equal(np.isnan(expected), missing)


@pytest.mark.parametrize("which", [0, 1])
def test_a_silent_stem_leaves_nothing_to_score(which):
    pair = music(3, 2, 9000), separated(music(3, 2, 9000))
    pair[which][1] = 0
    with pytest.raises(ValueError, match="non-silent"):
        museval(*pair, window=2000, hop=2000, taps=16)
    for scores in bss_eval(*pair, window=2000, taps=16):
        assert scores.shape == (3, 4)
        assert scores.dtype == torch.float64
        assert scores.isnan().all()


@pytest.mark.parametrize("level", [1, 100])
@pytest.mark.parametrize("taps", [16, 200])
def test_equal_channels(level, taps):
    """Makes the equations singular; mono sources in stereo files do."""
    references = level * music(3, 2, 9000)
    references[:, 1] = references[:, 0]
    estimates = separated(references, noise=0)
    estimates += level * separated(music(3, 1, 9000, seed=5)).expand(-1, 2, -1)
    compare(references, estimates, taps=taps)


def test_perfect_and_scaled_estimates():
    references = music(3, 2, 9000)
    expected = compare(references, references.clone())
    assert expected.min() > PERFECT
    scores = bss_eval(references, references, window=2000, taps=16)
    assert torch.isposinf(scores.sdr).all()
    expected = compare(references, 0.5 * references)
    np.testing.assert_allclose(expected[:2], 20 * np.log10(2), atol=1e-6)
    mixture = references.sum(0, keepdim=True).expand(3, -1, -1)
    compare(references, mixture)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
def test_other_types_are_scored_as_float64(dtype):
    references = (10_000 * music(2, 2, 9000)).to(dtype)
    estimates = (10_000 * separated(music(2, 2, 9000))).to(dtype)
    compare(references, estimates)


def test_streamed_is_the_same_and_reads_short_pieces():
    references = music(2, 2, 1_000_000).float()
    estimates = separated(references).float()
    longest = 0

    def read(start, stop):
        nonlocal longest
        longest = max(longest, stop - start)
        assert 0 <= start < stop <= 1_000_000
        return references[..., start:stop], estimates[..., start:stop]

    streamed = bss_eval_streamed(read, 1_000_000, window=20_000, taps=8)
    whole = bss_eval(references, estimates, window=20_000, taps=8)
    torch.testing.assert_close(torch.stack(streamed), torch.stack(whole), rtol=0, atol=0)
    assert longest <= 600_000


def test_medians_as_museval_has_them():
    nan, inf = torch.nan, torch.inf
    scores = torch.tensor(
        [[3.0, 1, nan, 2, 7], [nan, nan, nan, nan, nan], [nan, 5, nan, nan, nan], [1, 2, 9, nan, 8]]
    )
    expected = torch.tensor([2.5, nan, 5, 5])
    torch.testing.assert_close(median(scores), expected, equal_nan=True)
    torch.testing.assert_close(
        median(scores)[[0, 2, 3]], torch.from_numpy(np.nanmedian(scores.numpy()[[0, 2, 3]], -1))
    )
    assert median(torch.tensor([inf, inf, 1, inf])).item() == inf
    medians = BSSEval(scores, scores + 1, scores + 2, scores + 3).medians()
    torch.testing.assert_close(medians.sir, expected + 2, equal_nan=True)


def test_arguments_stay_as_they_are():
    references = music(2, 2, 5000)
    estimates = separated(references)
    copies = references.clone(), estimates.clone()
    bss_eval(references, estimates, window=2000, taps=8)
    assert torch.equal(references, copies[0])
    assert torch.equal(estimates, copies[1])


@pytest.mark.parametrize("shape", [(2, 2, 90), (3, 1, 100), (2, 100), (1, 2, 2, 100)])
def test_other_shapes(shape):
    with pytest.raises(ValueError, match=r"must both be \(S, C, T\)"):
        bss_eval(torch.ones(2, 2, 100), torch.ones(shape))


@pytest.mark.parametrize("name", ["window", "hop", "taps"])
def test_lengths_are_positive(name):
    with pytest.raises(ValueError, match=f"{name}=0 samples is not positive"):
        bss_eval(torch.ones(2, 2, 100), torch.ones(2, 2, 100), **{name: 0})
    with pytest.raises(ValueError, match="length=0 samples"):
        bss_eval(torch.ones(2, 2, 0), torch.ones(2, 2, 0))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_are_finite(value):
    references = music(2, 2, 5000)
    estimates = separated(references)
    estimates[1, 0, 4999] = value
    with pytest.raises(ValueError, match="not finite"):
        bss_eval(references, estimates, window=2000, taps=8)
