"""What can be written, and that it is known before anything is computed."""

import pytest
import torch

from demucs_lightning import audio
from demucs_lightning.audio import Encoding
from tests.audio.sounds import noise, tones


@pytest.mark.parametrize(
    ("name", "rate", "expected"),
    [
        ("x.wav", 192_000, 192_000),
        ("x.flac", 8000, 8000),
        ("x.mp3", 44_100, 44_100),
        ("x.mp3", 96_000, 48_000),
        ("x.mp3", 88_200, 44_100),
        ("x.mp3", 192_000, 48_000),
        ("x.mp3", 37_800, 44_100),
        ("x.m4a", 88_200, 88_200),
        ("x.m4a", 192_000, 96_000),
        ("x.opus", 44_100, 48_000),
        ("x.opus", 8000, 48_000),
        ("x.stem.mp4", 96_000, 48_000),
        ("x.stem.mp4", 22_050, 44_100),
        ("X.MP3", 44_100, 44_100),
    ],
)
def test_the_rate_that_a_file_will_have(tmp_path, name, rate, expected):
    assert audio.check_encoder(tmp_path / name, samplerate=rate, channels=2) == expected
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "channels", "encoding", "message"),
    [
        ("x.xyz", 2, {}, r"x\.xyz can't be written: its name must end in one of \.aif, .*\.wav\.$"),
        ("noend", 2, {}, "its name must end in one of"),
        ("x.mp3", 8, {}, r"x\.mp3 can't have 8 channels: one of 1, 2 was expected\."),
        ("x.opus", 5, {}, "can't have 5 channels: one of 1, 2, 3, 4, 6, 8 was"),
        ("x.flac", 9, {}, "can't have 9 channels"),
        ("x.wav", 0, {}, "can't have 0 channels"),
        ("x.wav", 2, {"subtype": "PCM_8"}, "one of PCM_16, PCM_24, PCM_32, FLOAT was expected"),
        ("x.flac", 2, {"subtype": "FLOAT"}, "as FLOAT: one of PCM_16, PCM_24 was expected"),
        ("x.mp3", 2, {"subtype": "PCM_16"}, "as PCM_16: its codec has no depth to choose"),
        ("x.wav", 2, {"bitrate": 320}, "has no bit rate to choose: leave bitrate=320 out"),
        ("x.mp3", 2, {"bitrate": 1000}, "bitrate=1000: 8 to 320 kbit/s can be chosen"),
        ("x.m4a", 2, {"preset": 2}, "has no preset to choose: leave preset=2 out"),
        ("x.mp3", 2, {"preset": 11}, r"preset=11: 0 \(best\) to 9"),
    ],
)
def test_what_can_not_be_written_is_told_at_once(tmp_path, name, channels, encoding, message):
    how = Encoding(**encoding)
    for check in (audio.check_encoder, audio.writer):
        with pytest.raises(ValueError, match=message):
            check(tmp_path / name, samplerate=44_100, channels=channels, encoding=how)
    assert not list(tmp_path.iterdir())


def test_what_an_aiff_can_hold():
    def check(name: str, frames: int) -> int:
        return audio.check_encoder(name, samplerate=44_100, channels=2, frames=frames)

    assert check("x.aiff", 10**9) == 44_100
    with pytest.raises(ValueError, match="would pass the 4 GiB that its format can hold"):
        check("x.aiff", 2 * 10**9)
    assert check("x.wav", 2 * 10**9) == 44_100


def test_bit_rates_and_presets_are_obeyed(tmp_path):
    samples = tones(2, 44_100)
    sizes = {}
    for name in ("x.mp3", "x.m4a", "x.opus"):
        for bitrate in (64, 192):
            how = Encoding(bitrate=bitrate)
            with audio.writer(tmp_path / name, samplerate=44_100, channels=2, encoding=how) as to:
                to.write(samples)
            sizes[name, bitrate] = (tmp_path / name).stat().st_size
        assert 2 < sizes[name, 192] / sizes[name, 64] < 4
    assert sizes["x.mp3", 64] == pytest.approx(64_000 / 8, rel=0.1)
    contents = []
    for preset in (0, 9):
        how = Encoding(preset=preset)
        with audio.writer(tmp_path / "p.mp3", samplerate=44_100, channels=2, encoding=how) as to:
            to.write(samples + torch.randn(samples.shape) / 100)
        contents.append((tmp_path / "p.mp3").read_bytes())
    assert contents[0] != contents[1]


@pytest.mark.parametrize("suffix", sorted(audio.FORMATS))
def test_the_room_that_a_file_needs(tmp_path, suffix):
    samples, path = noise(2, 4 * 44_100), tmp_path / f"x{suffix}"
    room = audio.expected_bytes(path, frames=4 * 44_100, samplerate=44_100, channels=2)
    audio.write(path, samples, samplerate=44_100)
    size = path.stat().st_size
    assert size <= room < 1.5 * size + 70_000


@pytest.mark.parametrize(
    ("found", "name", "expected"),
    [
        ("PCM_16", "x.wav", "PCM_16"),
        ("PCM_24", "x.flac", "PCM_24"),
        ("PCM_32", "x.flac", "PCM_24"),
        ("PCM_U8", "x.wav", "PCM_16"),
        ("FLOAT", "x.wav", "FLOAT"),
        ("DOUBLE", "x.aiff", "FLOAT"),
        ("FLOAT", "x.flac", "PCM_24"),
        ("aac", "x.wav", "PCM_16"),
        ("PCM_24", "x.mp3", None),
    ],
)
def test_the_depth_that_keeps_the_depth(found, name, expected):
    assert audio.subtype_like(found, name) == expected
