"""Audio files: what is read is what was written, and no damaged file passes for a sound one."""

import math
import os
import resource
import struct
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from demucs_lightning import audio
from demucs_lightning.audio import AudioInfo

RATE = 8000


def noise(channels: int = 2, frames: int = 5000, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(channels, frames, generator=generator) * 1.6 - 0.8


def stempeg_song() -> Path:
    spec = find_spec("stempeg")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return next((Path(spec.submodule_search_locations[0]) / "data").glob("*.stem.mp4"))


def encode(path: Path, samples: torch.Tensor, codec: str) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=44100, layout="stereo")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(samples.numpy(), format="fltp", layout="stereo")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def riff(*chunks: tuple[bytes, bytes], data_size: int | None = None) -> bytes:
    """A WAV file of these chunks; `data_size` is what the header says instead of the truth."""
    body = b""
    for name, content in chunks:
        size = len(content) if name != b"data" or data_size is None else data_size
        body += name + struct.pack("<I", size) + content + b"\0" * (len(content) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def pcm_format(channels: int) -> bytes:
    return struct.pack("<HHIIHH", 1, channels, RATE, RATE * channels * 2, channels * 2, 16)


@pytest.mark.parametrize(("suffix", "channels"), [(".wav", 1), (".wav", 5), (".flac", 2)])
def test_integers_survive_a_round_trip(tmp_path, suffix, channels):
    steps = torch.randint(-(2**15), 2**15, (channels, 999), dtype=torch.int16)
    for number, samples in enumerate((steps, steps / 2**15)):
        path = tmp_path / f"{number}{suffix}"
        audio.write(path, samples, samplerate=RATE)
        found, rate = audio.read(path)
        assert rate == RATE
        assert found.dtype == torch.float32
        assert torch.equal(found, steps / 2**15)
        assert audio.info(path) == AudioInfo(RATE, channels, 999)
        assert soundfile.info(path).subtype == "PCM_16"


def test_floats_keep_what_lies_beyond_full_scale(tmp_path):
    loud = noise() * 5
    audio.write(tmp_path / "loud.wav", loud, samplerate=RATE, subtype="FLOAT")
    assert torch.equal(audio.read(tmp_path / "loud.wav")[0], loud)


@pytest.mark.parametrize(("subtype", "scale"), [("PCM_16", 2**15), ("PCM_24", 2**23)])
def test_pcm_rounds_to_the_nearest_step_and_saturates(tmp_path, subtype, scale):
    samples = torch.tensor([[-2.0, -1.0, -0.7 / scale, 0.4 / scale, 0.6 / scale, 1.0, 3.0]])
    audio.write(tmp_path / "x.wav", samples, samplerate=RATE, subtype=subtype)
    expected = [-scale, -scale, -1, 0, 1, scale - 1, scale - 1]
    assert (audio.read(tmp_path / "x.wav")[0][0].double() * scale).tolist() == expected


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_no_number_is_not_written(tmp_path, wrong):
    path = tmp_path / "x.wav"
    audio.write(path, noise(), samplerate=RATE)
    before = path.read_bytes()
    samples = noise()
    samples[1, 7] = wrong
    with pytest.raises(ValueError, match=r"x\.wav is not written: the audio holds NaN"):
        audio.write(path, samples, samplerate=RATE, subtype="FLOAT")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "subtype", "message"),
    [("x.mp3", "PCM_16", "must end in .wav or .flac"), ("x.wav", "PCM_8", "PCM_16, PCM_24 or")],
)
def test_unknown_formats_are_refused(tmp_path, name, subtype, message):
    with pytest.raises(ValueError, match=message):
        audio.write(tmp_path / name, noise(), samplerate=RATE, subtype=subtype)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def _full_disk() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("_full_disk")
def test_a_full_disk_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match=r"x\.wav can't be written"):
        audio.write(tmp_path / "x.wav", noise(), samplerate=RATE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("start", "frames"), [(0, 10), (4000, 500), (4900, 500), (9000, 5)])
def test_reading_a_part(tmp_path, start, frames):
    samples = noise()
    audio.write(tmp_path / "x.wav", samples, samplerate=RATE, subtype="FLOAT")
    part = audio.read(tmp_path / "x.wav", start=start, frames=frames)[0]
    assert torch.equal(part, samples[:, start : start + frames])


@pytest.mark.parametrize("size", [1000, 1250, 7000])
def test_blocks_make_up_the_file(tmp_path, size):
    samples = noise()
    audio.write(tmp_path / "x.flac", samples, samplerate=RATE)
    blocks = list(audio.blocks(tmp_path / "x.flac", size=size))
    assert [block.shape[-1] for block in blocks[:-1]] == [size] * (len(blocks) - 1)
    assert torch.equal(torch.cat(blocks, dim=-1), audio.read(tmp_path / "x.flac")[0])


def test_streams_of_a_stem_file():
    path = stempeg_song()
    streams = [audio.read(path, stream=number)[0] for number in range(5)]
    assert all(audio.info(path, number) == AudioInfo(44100, 2, 268288) for number in range(5))
    assert all(stream.shape == (2, 268288) for stream in streams)
    mixture, *stems = streams
    total = torch.stack(stems).sum(0)
    assert torch.corrcoef(torch.stack([mixture.flatten(), total.flatten()]))[0, 1] > 0.98
    assert all(float(stem.std()) > 1e-3 for stem in stems)
    part = audio.read(path, start=100_000, frames=999, stream=2)[0]
    assert torch.equal(part, streams[2][:, 100_000:100_999])
    blocks = list(audio.blocks(path, size=100_000, stream=4))
    assert [block.shape[-1] for block in blocks] == [100_000, 100_000, 68_288]
    assert torch.equal(torch.cat(blocks, dim=-1), streams[4])
    with pytest.raises(ValueError, match=r"stem\.mp4 has 5 audio streams, so none is number 5"):
        audio.info(path, 5)


@pytest.mark.parametrize("suffix", [".m4a", ".mp3", ".ogg"])
def test_lossy_formats(tmp_path, suffix):
    time = torch.arange(44100) / 44100
    samples = torch.stack([torch.sin(2 * torch.pi * pitch * time) for pitch in (440, 1000)]) / 2
    path = tmp_path / f"x{suffix}"
    if suffix == ".m4a":
        encode(path, samples, "aac")
    else:
        soundfile.write(path, samples.T.numpy(), 44100)
    found, rate = audio.read(path)
    assert audio.info(path) == AudioInfo(44100, 2, found.shape[-1])
    assert rate == 44100
    assert abs(found.shape[-1] - 44100) < 4410
    part = slice(10_000, 30_000)
    for channel in range(2):
        got, wanted = (torch.fft.rfft(x[channel, part]).abs() for x in (found, samples))
        assert torch.cosine_similarity(got, wanted, dim=0) > 0.99


def damage(path: Path, how: str) -> None:
    """Make of `path` a file that is damaged in a certain way."""
    if how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("this is no audio " * 100)
    elif how == "no samples":
        soundfile.write(path, np.zeros((0, 2)), RATE)
    elif how == "truncated":
        if path.suffix == ".mp4":
            path.write_bytes(stempeg_song().read_bytes())
        else:
            soundfile.write(path, noise(2, 50_000).T.numpy(), 44100)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("x.wav", "missing", "is not there"),
        ("x.wav", "empty", "is empty (0 bytes)"),
        ("x.wav", "text", "can't be decoded"),
        ("x.wav", "no samples", "its length is 0 samples"),
        ("x.wav", "truncated", "its header promises 50000 samples, the file holds 24994"),
        ("x.flac", "text", "can't be decoded"),
        ("x.flac", "truncated", "x.flac"),
        ("x.mp3", "truncated", "is truncated"),
        ("x.m4a", "missing", "is not there"),
        ("x.m4a", "empty", "is empty (0 bytes)"),
        ("x.m4a", "text", "can't be decoded"),
        ("x.stem.mp4", "truncated", "is truncated"),
    ],
)
@pytest.mark.parametrize("reader", [audio.read, lambda path: list(audio.blocks(path))])
def test_damaged_files_are_named_in_one_sentence(tmp_path, name, how, message, reader):
    path = tmp_path / name
    damage(path, how)
    if how == "no samples" and reader is not audio.read:
        assert reader(path) == []
        return
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        reader(path)
    text = str(caught.value)
    assert message in text
    assert str(path) in text
    assert "\n" not in text


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
    assert audio.info(path) == AudioInfo(RATE, channels, 777)


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
    assert len(os.listdir("/dev/fd")) == descriptors
    for samples in maps:
        assert samples is not None
        samples[:] = 0
    assert path.read_bytes() == before
