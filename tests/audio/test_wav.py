"""Maps of WAV files, and the headers that are written."""

import os
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from demucs_lightning import audio
from demucs_lightning.audio import AudioInfo, AudioWriter, Encoding, Tags, writing
from demucs_lightning.audio import wav as wav_module
from tests.audio.sounds import RATE, noise, pcm_format, riff


@pytest.mark.parametrize("form", ["WAV", "WAVEX", "RF64"])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_mapping_pcm(tmp_path, form, channels):
    path = tmp_path / "x.wav"
    samples = np.random.default_rng(0).integers(-9999, 9999, (777, channels), dtype=np.int16)
    soundfile.write(path, samples, RATE, format=form, subtype="PCM_16")
    found = audio.memory_map(path)
    assert found is not None
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, samples)
    assert audio.info(path) == AudioInfo(RATE, channels, 777, "PCM_16")


def test_mapping_floats_and_nothing_else(tmp_path):
    samples = noise()
    audio.write(tmp_path / "x.wav", samples, samplerate=RATE, subtype="FLOAT")
    found = audio.memory_map(tmp_path / "x.wav")
    assert found is not None
    np.testing.assert_array_equal(found, samples.T.numpy())
    audio.write(tmp_path / "y.wav", samples, samplerate=RATE, subtype="PCM_24")
    audio.write(tmp_path / "z.flac", samples, samplerate=RATE)
    assert audio.memory_map(tmp_path / "y.wav") is None
    assert audio.memory_map(tmp_path / "z.flac") is None


def test_mapping_finds_the_samples_behind_odd_chunks(tmp_path):
    path = tmp_path / "x.wav"
    samples = np.arange(-50, 50, dtype="<i2").reshape(50, 2)
    extra = [(b"junk", b"x" * 611), (b"LIST", b"INFOISFT" + struct.pack("<I", 3) + b"abc")]
    data = (b"data", samples.tobytes())
    path.write_bytes(riff(extra[0], (b"fmt ", pcm_format(2)), extra[1], data, (b"id3 ", b"tail")))
    found = audio.memory_map(path)
    assert found is not None
    np.testing.assert_array_equal(found, samples)
    np.testing.assert_array_equal(audio.read(path)[0].numpy() * 2**15, samples.T)


def test_a_length_that_a_pipe_left_open_is_the_rest_of_the_file(tmp_path):
    path = tmp_path / "x.wav"
    samples = np.arange(100, dtype="<i2").reshape(50, 2)
    chunks = [(b"fmt ", pcm_format(2)), (b"data", samples.tobytes())]
    path.write_bytes(riff(*chunks, data_size=0xFFFFFFFF))
    found = audio.memory_map(path)
    assert found is not None
    np.testing.assert_array_equal(found, samples)


def test_maps_hold_no_file_and_never_write_to_it(tmp_path):
    path = tmp_path / "x.wav"
    audio.write(path, noise(), samplerate=RATE)
    before = path.read_bytes()
    descriptors = len(os.listdir("/dev/fd"))
    maps = [audio.memory_map(path) for _ in range(50)]
    assert len(os.listdir("/dev/fd")) <= descriptors  # fewer, if those of other tests are let go
    for samples in maps:
        assert samples is not None
        samples[:] = 0
    assert path.read_bytes() == before


def wav(path: Path, subtype: str, channels: int, frames: int) -> torch.Tensor:
    """Write a WAV in uneven blocks."""
    samples = noise(channels, frames)
    how, tags = Encoding(subtype=subtype), Tags(title="odd", artist="even!")
    with audio.writer(path, samplerate=RATE, channels=channels, encoding=how, tags=tags) as to:
        for block in samples.split(333, dim=-1):
            to.write(block)
    return samples


@pytest.mark.parametrize("limit", [wav_module.LARGEST, 1000])
@pytest.mark.parametrize("channels", [1, 2, 3, 8, 11])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT"])
def test_headers_are_right_for_any_length(tmp_path, monkeypatch, subtype, channels, limit):
    monkeypatch.setattr(wav_module, "LARGEST", limit)
    path = tmp_path / "x.wav"
    samples = wav(path, subtype, channels, 1001)
    head = path.read_bytes()[:48]
    if limit == 1000:
        assert head[:8] == b"RF64\xff\xff\xff\xff"
        size, data, frames, table = struct.unpack("<QQQI", head[20:48])
        width = {"PCM_16": 2, "PCM_24": 3}.get(subtype, 4)
        assert (head[12:16], size, frames, table) == (b"ds64", path.stat().st_size - 8, 1001, 0)
        assert data == 1001 * channels * width
    else:
        assert head[:4] == b"RIFF"
        assert struct.unpack("<I", head[4:8])[0] == path.stat().st_size - 8
        assert head[12:16] == b"JUNK"
    assert audio.info(path) == AudioInfo(RATE, channels, 1001, subtype)
    theirs = soundfile.info(path)
    assert (theirs.format, theirs.subtype, theirs.frames) == (
        "RF64" if limit == 1000 else ("WAVEX" if channels > 2 else "WAV"),
        subtype,
        1001,
    )
    steps = {"PCM_16": 2**15, "PCM_24": 2**23, "PCM_32": 2**31}.get(subtype)
    found = audio.read(path)[0]
    assert (found - samples).abs().max() <= (0.5 / steps + 2**-25 if steps else 0)
    with av.open(str(path)) as container:
        assert container.streams.audio[0].codec_context.sample_rate == RATE
        assert sum(frame.samples for frame in container.decode(audio=0)) == 1001
        assert container.metadata["title"] == "odd"
    mapped = audio.memory_map(path)
    assert (mapped is not None) == (subtype in ("PCM_16", "FLOAT"))
    if mapped is not None:
        assert mapped.shape == (1001, channels)


def test_past_four_gigabytes_a_wav_is_an_rf64(tmp_path, monkeypatch):
    """The samples are skipped, as in a file with holes: its length is real, its blocks are not."""
    path = tmp_path / "x.wav"

    def skip(self, block):
        size = block.shape[-1] * self._frame
        self._file.truncate(self._file.seek(size, os.SEEK_CUR))
        self._size += size

    monkeypatch.setattr(wav_module.WavFile, "write", skip)
    block = torch.zeros(1, 1).expand(2, 2**24)
    monkeypatch.setattr(AudioWriter, "_checked", lambda self, block: block)
    monkeypatch.setattr(writing, "_stored", lambda block, subtype: block)
    with audio.writer(path, samplerate=44_100, channels=2) as to:
        for _ in range(70):
            to.write(block)
    frames = 70 * 2**24
    assert path.stat().st_size > 2**32
    with path.open("rb") as file:
        assert file.read(4) == b"RF64"
    assert audio.info(path) == AudioInfo(44_100, 2, frames, "PCM_16")
    assert soundfile.info(path).frames == frames
    last, _ = audio.read(path, start=frames - 5, frames=9)
    assert last.shape == (2, 5)
    mapped = audio.memory_map(path)
    assert mapped is not None
    assert mapped.shape == (frames, 2)
