"""The copies that make any recording mappable: when they are made, of what kind, and where."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from demucs_lightning import audio
from demucs_lightning.data import cache
from demucs_lightning.data.cache import AUDIO_CACHE, Recording, as_wav, is_mappable


def convert(path: Path, *, samplerate: int = 8000, channels: int = 2) -> Path:
    folder = path.parents[1]
    return as_wav(folder, Recording(path), samplerate=samplerate, channels=channels)


def mapped(path: Path) -> np.ndarray:
    samples = audio.memory_map(path)
    assert samples is not None
    return samples


@pytest.mark.parametrize(
    ("subtype", "rate", "channels", "expected"),
    [
        ("PCM_16", 8000, 2, True),
        ("FLOAT", 8000, 2, True),
        ("PCM_24", 8000, 2, False),
        ("PCM_16", 11025, 2, False),
        ("PCM_16", 8000, 1, False),
    ],
)
def test_what_needs_no_copy(tmp_path, song, subtype, rate, channels, expected):
    song(tmp_path, ["x"], subtype=subtype, rate=rate, channels=channels)
    recording = Recording(tmp_path / "x.wav")
    assert is_mappable(recording, samplerate=8000, channels=2) is expected


def test_sixteen_bits_stay_sixteen_bits(tmp_path, song):
    song(tmp_path / "a", ["x"], suffix=".flac")
    copy = convert(tmp_path / "a" / "x.flac")
    assert copy.is_relative_to(tmp_path / AUDIO_CACHE)
    assert mapped(copy).dtype == np.int16
    expected = soundfile.read(tmp_path / "a" / "x.flac", dtype="int16")[0]
    np.testing.assert_array_equal(mapped(copy), expected)
    assert mapped(convert(tmp_path / "a" / "x.flac", channels=1)).dtype == np.float32


def test_twenty_four_bits_become_floats(tmp_path):
    (tmp_path / "a").mkdir()
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (999, 2))
    soundfile.write(tmp_path / "a" / "x.wav", samples, 8000, subtype="PCM_24")
    found = mapped(convert(tmp_path / "a" / "x.wav"))
    assert found.dtype == np.float32
    assert np.abs(found - samples).max() < 2**-23


def test_rate_and_channels_are_converted(tmp_path, song):
    song(tmp_path / "a", ["x"], rate=11025, channels=1)
    found = mapped(convert(tmp_path / "a" / "x.wav", samplerate=8000, channels=2))
    original = audio.read(tmp_path / "a" / "x.wav")[0]
    expected = audio.resample(original, old=11025, new=8000).expand(2, -1)
    assert torch.equal(torch.from_numpy(found).T, expected)


def test_a_copy_is_made_once_and_follows_its_original(tmp_path, song):
    song(tmp_path / "a", ["x"], suffix=".flac")
    path = tmp_path / "a" / "x.flac"
    first = convert(path)
    made = first.stat().st_mtime_ns
    assert convert(path) == first
    assert first.stat().st_mtime_ns == made
    other = convert(path, channels=1)
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    second = convert(path)
    assert second != first
    assert second.exists()
    assert not first.exists(), "nobody can ask for it any more"
    assert other.exists(), "that of another format is left alone"


def test_where_data_are_read_only_copies_are_the_users(tmp_path, song, monkeypatch):
    song(tmp_path / "a", ["x"], suffix=".flac")
    monkeypatch.setattr(cache, "_writable", lambda folder: False)
    copy = convert(tmp_path / "a" / "x.flac")
    assert copy.is_relative_to(cache.user_cache())
    assert convert(tmp_path / "a" / "x.flac") == copy
    assert not (tmp_path / AUDIO_CACHE).exists()


def test_channels_that_do_not_convert_are_named(tmp_path, song):
    song(tmp_path / "a", ["x"], channels=2)
    with pytest.raises(ValueError, match=r"a/x\.wav: 2 channels can't become 3"):
        convert(tmp_path / "a" / "x.wav", channels=3)


def test_not_a_number_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    wrong = np.full((100, 1), np.inf, dtype=np.float32)
    soundfile.write(tmp_path / "a" / "x.wav", wrong, 8000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"a/x\.wav holds NaN"):
        convert(tmp_path / "a" / "x.wav", channels=2)


@pytest.mark.parametrize(
    ("free", "message"),
    [
        (999, r"\.demucs_lightning_cache/a has .* free, .* to convert .*a/x\.flac"),
        (10**9, "broken"),
    ],
)
def test_a_full_disk_is_said(tmp_path, song, monkeypatch, free, message):
    song(tmp_path / "a", ["x"], suffix=".flac")

    def fail(self, block):
        raise OSError("broken")

    monkeypatch.setattr("demucs_lightning.audio.wav.WavFile.write", fail)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(OSError, match=message):
        convert(tmp_path / "a" / "x.flac")
    assert not [path for path in (tmp_path / AUDIO_CACHE).rglob("*") if path.is_file()]


def test_a_truncated_original_leaves_no_copy(tmp_path, song):
    song(tmp_path / "a", ["x"], suffix=".flac")
    path = tmp_path / "a" / "x.flac"
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(ValueError, match=r"a/x\.flac"):
        convert(path)
    assert not (tmp_path / AUDIO_CACHE).exists()
