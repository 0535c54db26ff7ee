"""Recordings for the tests of audio: noise, tones, and a real song with its stems."""

import struct
from importlib.util import find_spec
from pathlib import Path

import av
import torch

RATE = 8000


def noise(channels: int = 2, frames: int = 5000, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(channels, frames, generator=generator) * 1.6 - 0.8


def tones(channels: int = 2, frames: int = 44100, rate: int = 44100) -> torch.Tensor:
    """A tone of its own pitch in each channel, at half of full scale."""
    time = torch.arange(frames) / rate
    pitches = [300 + 170 * channel for channel in range(channels)]
    return torch.stack([torch.sin(2 * torch.pi * pitch * time) for pitch in pitches]) / 2


def stempeg_song() -> Path:
    spec = find_spec("stempeg")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return next((Path(spec.submodule_search_locations[0]) / "data").glob("*.stem.mp4"))


def encode(path: Path, samples: torch.Tensor, codec: str) -> None:
    """Stereo at 44100 Hz, as FFmpeg writes it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=44100, layout="stereo")
        assert isinstance(stream, av.AudioStream)
        stream.bit_rate = 128_000
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


def same_sound(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The least cosine of the spectra of two recordings, over the channels, away from the ends."""
    length = min(found.shape[-1], wanted.shape[-1])
    part = slice(length // 5, length - length // 5)
    got, expected = (torch.fft.rfft(x[..., part]).abs() for x in (found, wanted))
    return float(torch.cosine_similarity(got, expected, dim=-1).min())
