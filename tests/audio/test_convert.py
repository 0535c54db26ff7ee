"""Rates and channels."""

import pytest
import torch

from demucs_lightning import audio
from tests.audio.sounds import RATE, noise


def test_resampling_a_sine():
    old, new, pitch = 44100, 48000, 1000.0
    for source, target in ((old, new), (new, old), (old, 22050)):
        wave, expected = (
            torch.sin(2 * torch.pi * pitch * torch.arange(rate, dtype=torch.float64) / rate).float()
            for rate in (source, target)
        )
        stacked = torch.stack([wave, -wave, wave / 2, wave * 0]).reshape(2, 2, source)
        found = audio.resample(stacked, old=source, new=target)
        assert found.shape == (2, 2, target)
        middle = slice(target // 10, -target // 10)
        assert (found[0, 0] - expected)[middle].abs().max() < 1e-5
        assert torch.equal(found[0, 1], -found[0, 0])
        assert (found[1, 0] - found[0, 0] / 2).abs().max() < 1e-6
        assert not found[1, 1].any()
        assert torch.equal(found, audio.resample(stacked, old=source, new=target))
    assert torch.equal(audio.resample(stacked, old=RATE, new=RATE), stacked)


def test_converting_channels():
    mono, stereo, five = noise(1), noise(2), noise(5)
    assert torch.equal(audio.convert_channels(mono, 2), torch.cat([mono, mono]))
    assert torch.equal(audio.convert_channels(mono, 1), mono)
    assert torch.allclose(audio.convert_channels(stereo, 1), (stereo[:1] + stereo[1:]) / 2)
    assert torch.equal(audio.convert_channels(stereo, 2), stereo)
    assert torch.equal(audio.convert_channels(five, 2), five[:2])
    assert audio.convert_channels(noise(6)[None].view(3, 2, -1), 1).shape == (3, 1, 5000)
    with pytest.raises(ValueError, match="2 channels can't become 5"):
        audio.convert_channels(stereo, 5)


@pytest.mark.parametrize("sizes", [[1] * 300 + [2000], [5000], [0, 777, 0, 2000]])
@pytest.mark.parametrize(("old", "new"), [(44_100, 48_000), (48_000, 44_100), (8000, 8000)])
def test_resampling_in_pieces_is_resampling_in_one_go(sizes, old, new):
    samples = noise(3, sum(sizes))
    before = samples.clone()
    resampler = audio.Resampler(3, old=old, new=new)
    pieces = [resampler(piece) for piece in samples.split(sizes, dim=-1)] + [resampler.flush()]
    found = torch.cat(pieces, dim=-1)
    assert torch.equal(found, audio.resample(samples, old=old, new=new))
    assert torch.equal(samples, before)


def test_the_length_after_resampling():
    for old, new in ((44_100, 48_000), (48_000, 44_100), (44_100, 22_050), (11_025, 8000)):
        for frames in range(1, 400, 7):
            found = audio.resample(torch.zeros(1, frames), old=old, new=new).shape[-1]
            tie = 2 * frames * new % (2 * old) == old
            assert 0 <= audio.resampled_length(frames, old=old, new=new) - found <= tie
