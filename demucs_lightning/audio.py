"""Audio files to tensors and back: the only file that knows codecs.

WAV, FLAC, Ogg and MP3 go through libsndfile (soundfile), everything else (M4A, the five streams of
a `.stem.mp4`, ...) through PyAV, rates are converted by soxr. Audio is (C, T) float32 with full
scale at 1; 16-bit samples are x / 32768, so they survive a round trip exactly. A file that is
missing, empty, truncated or no audio raises FileNotFoundError or ValueError, in one sentence that
names it. No result depends on the number of threads.
"""

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr
import torch
from av.error import FFmpegError
from torch import Tensor

SOUNDFILE_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
BLOCK = 2**16  # frames
FULL_SCALE = {"PCM_16": 2**15, "PCM_24": 2**23}
# Shorter than its header says by more than this (seconds), an MP4 is truncated. What encoders add
# in front and behind is less than a tenth.
MP4_SLACK = 0.25


@dataclass(frozen=True)
class AudioInfo:
    """What a stream holds; `frames` is exact, and counts samples per channel."""

    samplerate: int
    channels: int
    frames: int


def info(path: str | Path, stream: int = 0) -> AudioInfo:
    """Rate, channels and length of an audio stream; whatever PyAV reads is decoded to count it."""
    path = _existing(path)
    if path.suffix.lower() in SOUNDFILE_SUFFIXES:
        with _decoding(path), soundfile.SoundFile(path) as file:
            found = AudioInfo(file.samplerate, file.channels, file.frames)
    else:
        found = AudioInfo(0, 0, 0)
        for frame in _av_frames(path, stream):
            channels = frame.layout.nb_channels
            found = AudioInfo(frame.sample_rate, channels, found.frames + frame.samples)
    if not found.frames:
        raise _no_audio(path)
    return found


def blocks(path: str | Path, *, size: int = BLOCK, stream: int = 0) -> Iterator[Tensor]:
    """Decode a file in pieces (C, size) float32, the last one shorter, without ever holding more.

    Raises ValueError where the file ends before its header says.
    """
    path = _existing(path)
    if path.suffix.lower() in SOUNDFILE_SUFFIXES:
        return _soundfile_blocks(path, size)
    return _resized(map(_samples, _av_frames(path, stream)), size)


def read(
    path: str | Path, *, start: int = 0, frames: int | None = None, stream: int = 0
) -> tuple[Tensor, int]:
    """Decode `frames` samples from `start` on (all by default) as (C, T) float32, and the rate.

    T is shorter than `frames` where the file ends, 0 where `start` lies behind its end.
    """
    path = _existing(path)
    if path.suffix.lower() not in SOUNDFILE_SUFFIXES:
        decoded = list(_av_frames(path, stream))
        if not decoded:
            raise _no_audio(path)
        audio = torch.cat([_samples(frame) for frame in decoded], dim=-1)
        stop = None if frames is None else start + frames
        return audio[:, start:stop].contiguous(), decoded[0].sample_rate
    with _decoding(path), soundfile.SoundFile(path) as file:
        start = file.seek(min(start, file.frames))
        wanted = file.frames - start if frames is None else min(frames, file.frames - start)
        audio = torch.from_numpy(file.read(wanted, dtype="float32", always_2d=True).T)
        promised, samplerate = file.frames, file.samplerate
    if not promised:
        raise _no_audio(path)
    if audio.shape[-1] < wanted:
        raise _truncated(path, promised, start + audio.shape[-1])
    return audio.contiguous(), samplerate


def write(path: str | Path, audio: Tensor, *, samplerate: int, subtype: str = "PCM_16") -> None:
    """Write (C, T) audio, float or int16, as WAV (RF64 past 4 GiB) or FLAC, all of it or nothing.

    `subtype` is PCM_16, PCM_24 or FLOAT. FLOAT keeps values beyond full scale, PCM rounds to the
    nearest step and saturates. Raises ValueError for NaN or infinity, OSError where the disk fails.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".wav", ".flac"):
        raise ValueError(f"{path} can't be written: its name must end in .wav or .flac.")
    if subtype not in (*FULL_SCALE, "FLOAT"):
        raise ValueError(f"{path} can't be written as {subtype}: PCM_16, PCM_24 or FLOAT can.")
    if not torch.isfinite(audio).all():
        raise ValueError(f"{path} is not written: the audio holds NaN or infinite values.")
    samples = _quantized(audio.detach().cpu(), subtype).T.contiguous().numpy()
    large = samples.nbytes > 2**32 - 2**16
    form = suffix[1:].upper() if suffix == ".flac" or not large else "RF64"
    with replacing(path) as partial:
        try:
            soundfile.write(partial, samples, samplerate, format=form, subtype=subtype)
        except soundfile.SoundFileError as error:
            raise OSError(f"{path} can't be written ({_reason(error)}).") from error


def _quantized(audio: Tensor, subtype: str) -> Tensor:
    if audio.dtype == torch.int16 and subtype == "PCM_16":
        return audio
    if audio.dtype == torch.int16:
        audio = audio / FULL_SCALE["PCM_16"]
    if subtype == "FLOAT":
        return audio.float()
    scale = FULL_SCALE[subtype]
    steps = (audio.double() * scale).round().clamp(-scale, scale - 1)
    return steps.short() if subtype == "PCM_16" else steps.int() << 8


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place at the end, or vanishes on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = f"{os.getpid()}-{threading.get_ident()}"
    partial = path.with_name(f".{path.name}.{owner}.part")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def resample(audio: Tensor, *, old: int, new: int) -> Tensor:
    """Convert (..., T) from `old` to `new` Hz by soxr's best recipe, to round(T * new / old)."""
    if old == new:
        return audio
    flat = audio.reshape(-1, audio.shape[-1]).T.numpy()
    converted = torch.from_numpy(soxr.resample(flat, old, new, quality="VHQ"))
    return converted.T.reshape(*audio.shape[:-1], -1)


def convert_channels(audio: Tensor, channels: int) -> Tensor:
    """(..., C, T) with `channels` channels: mono is copied to each, the mean of all makes mono,
    and of more than asked for the first ones stay. Raises ValueError for fewer, but not mono."""
    found = audio.shape[-2]
    if channels == 1 and found > 1:
        return audio.mean(dim=-2, keepdim=True)
    if found == 1:
        return audio.expand(*audio.shape[:-2], channels, audio.shape[-1])
    if found < channels:
        raise ValueError(f"{found} channels can't become {channels}: only mono can be spread.")
    return audio[..., :channels, :]


@dataclass(frozen=True)
class _WavLayout:
    """Where the samples of a WAV file lie; `tag` 1 is PCM and 3 is float."""

    tag: int
    channels: int
    bits: int
    offset: int
    size: int


def memory_map(path: str | Path) -> np.ndarray | None:
    """The samples (T, C) of a PCM_16 (int16) or 32-bit float (float32) WAV without reading them.

    None for any other file. The map is private, so nothing written to it reaches the file, and
    keeps no file descriptor, unlike numpy.memmap: a data set may hold thousands of them.
    """
    path = _existing(path)
    layout = _wav_layout(path)
    dtype = layout and {(1, 16): np.int16, (3, 32): np.float32}.get((layout.tag, layout.bits))
    if not layout or not dtype:
        return None
    width = np.dtype(dtype).itemsize
    if layout.offset % width or layout.channels == 0:
        return None
    count = layout.size // (width * layout.channels) * layout.channels
    size = layout.offset + count * width
    mapped = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
    return mapped[layout.offset :].view(dtype).reshape(-1, layout.channels)


def _wav_layout(path: Path) -> _WavLayout | None:
    """Walk the chunks of a WAV or RF64 up to its samples; ValueError where it is truncated."""
    length = path.stat().st_size
    form, long_size = b"", 0
    with path.open("rb") as file:
        start = file.read(12)
        if start[:4] not in (b"RIFF", b"RF64") or start[8:] != b"WAVE":
            return None
        while len(header := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", header)
            offset = file.tell()
            if name == b"data":
                break
            if name == b"fmt ":
                form = file.read(min(size, 40))
            elif name == b"ds64":
                long_size = struct.unpack("<8xQ", file.read(16).ljust(16, b"\0"))[0]
            file.seek(offset + size + size % 2)
        else:
            return None
    if len(form) < 16:
        return None
    tag, channels, _, _, align, bits = struct.unpack("<HHIIHH", form[:16])
    if tag == 0xFFFE and len(form) >= 26:  # WAVE_FORMAT_EXTENSIBLE: the tag is in the sub-format
        tag = struct.unpack("<H", form[24:26])[0]
    if size == 0xFFFFFFFF:  # RF64, or the length was unknown to a program that wrote to a pipe
        size = long_size or length - offset
    if size > length - offset:
        width = max(align, 1)
        raise _truncated(path, size // width, (length - offset) // width)
    return _WavLayout(tag, channels, bits, offset, size)


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: an audio file was expected.")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty (0 bytes): an audio file was expected.")
    if path.suffix.lower() == ".wav":
        _wav_layout(path)  # libsndfile reads a truncated WAV as if it were a shorter one
    return path


def _no_audio(path: Path) -> ValueError:
    return ValueError(f"{path} holds no audio: its length is 0 samples.")


def _truncated(path: Path, promised: int, found: int) -> ValueError:
    return ValueError(
        f"{path} is truncated: its header promises {promised} samples, the file holds {found}."
    )


def _reason(error: Exception) -> str:
    """What a library says was wrong, without the path that its messages repeat."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return text.replace("\n", " ").strip(" .")


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    try:
        yield
    except (soundfile.SoundFileError, FFmpegError) as error:
        raise ValueError(f"{path} can't be decoded as audio ({_reason(error)}).") from error


def _soundfile_blocks(path: Path, size: int) -> Iterator[Tensor]:
    done = 0
    with _decoding(path), soundfile.SoundFile(path) as file:
        while len(block := file.read(size, dtype="float32", always_2d=True)):
            done += len(block)
            yield torch.from_numpy(block.T)
        promised = file.frames
    if done < promised:
        raise _truncated(path, promised, done)


def _av_frames(path: Path, stream: int) -> Iterator[av.AudioFrame]:
    """What PyAV decodes, in the decoder's own frames, as planar floats."""
    with _decoding(path), av.open(str(path)) as container:
        streams = container.streams.audio
        if stream >= len(streams):
            raise ValueError(
                f"{path} has {len(streams)} audio streams, so none is number {stream}."
            )
        ticks, tick, rate, done = streams[stream].duration, streams[stream].time_base, 0, 0
        planar = av.AudioResampler(format="fltp")
        for decoded in container.decode(streams[stream]):
            for frame in planar.resample(decoded):
                rate, done = frame.sample_rate, done + frame.samples
                yield frame
        exact = "mp4" in container.format.name  # other containers estimate what they hold
    if exact and ticks and tick and ticks * tick - done / max(rate, 1) > MP4_SLACK:
        raise _truncated(path, round(ticks * tick * rate), done)


def _samples(frame: av.AudioFrame) -> Tensor:
    return torch.from_numpy(frame.to_ndarray())


def _resized(pieces: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """Cut what comes in pieces (C, n) anew, into (C, size) and a last shorter one."""
    held: list[Tensor] = []
    for piece in pieces:
        held.append(piece)
        while sum(part.shape[-1] for part in held) >= size:
            joined = torch.cat(held, dim=-1)
            yield joined[:, :size]
            held = [joined[:, size:]]
    if held and (rest := torch.cat(held, dim=-1)).shape[-1]:
        yield rest
