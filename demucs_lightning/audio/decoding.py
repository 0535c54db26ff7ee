"""Audio files to tensors, whole or in pieces.

WAV, FLAC, Ogg and AIFF and their like go through libsndfile (soundfile), everything else (MP3, M4A,
the five streams of a `.stem.mp4`, video, ...) through FFmpeg (PyAV). libsndfile reads less than
half of an MP3 of variable bit rate without a header, hence MP3 is FFmpeg's. Audio is (C, T) float32
with full scale at 1; 16-bit samples are x / 32768, so they survive a round trip exactly. A file
that is missing, empty, truncated or no audio raises FileNotFoundError, OSError or ValueError.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from demucs_lightning.audio.ffmpeg import av_frames, av_info, opened, samples
from demucs_lightning.audio.files import decoding, existing, head, native, no_audio, truncated
from demucs_lightning.audio.form import AudioInfo, plausible
from demucs_lightning.audio.wav import wav_layout
from demucs_lightning.audio.whole import check_size

SOUNDFILE_SUFFIXES = {".wav", ".wave", ".w64", ".rf64", ".flac", ".ogg", ".oga", ".aiff", ".aif"}
SOUNDFILE_SUFFIXES |= {".aifc", ".au", ".caf"}
BLOCK = 2**16  # frames
LONG = 2**22  # frames that are read at once where all are wanted
# What libsndfile decodes of the containers that others put all kinds of codecs into.
WAV_TAGS = (1, 2, 3, 6, 7, 0x11, 0x31, 0x40)  # PCM, float, A-law, mu-law and their like
OGG_CODECS = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC")
MATROSKA, ASF = b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75"


def info(path: str | Path, stream: int = 0, *, count: bool = True) -> AudioInfo:
    """What an audio stream holds. What FFmpeg reads is decoded to count it, unless `count` is off:
    then its length is what the header says, and 0 where it doesn't."""
    path = existing(path)
    if _reads_soundfile(path, stream):
        with decoding(path), soundfile.SoundFile(native(path)) as file:
            found = _soundfile_info(path, file)
    else:
        with opened(path, stream) as (container, audio):
            found = av_info(path, container, audio)
        if count:
            frames = sum(frame.samples for frame in av_frames(path, stream))
            found = replace(found, frames=frames, exact=True)
    if found.exact and not found.frames:
        raise no_audio(path)
    return found


def blocks(path: str | Path, *, size: int = BLOCK, stream: int = 0) -> Iterator[Tensor]:
    """Decode a file in pieces (C, size) float32, the last one shorter, without ever holding more.

    Raises ValueError where the file ends before its header says.
    """
    path = existing(path)
    if _reads_soundfile(path, stream):
        return _soundfile_blocks(path, size)
    return resized(map(samples, av_frames(path, stream)), size)


def read(
    path: str | Path, *, start: int = 0, frames: int | None = None, stream: int = 0
) -> tuple[Tensor, int]:
    """Decode `frames` samples from `start` on (all by default) as (C, T) float32, and the rate.

    T is shorter than `frames` where the file ends, 0 where `start` lies behind its end.
    """
    path = existing(path)
    if not _reads_soundfile(path, stream):
        decoded = list(av_frames(path, stream))
        if not decoded:
            raise no_audio(path)
        audio = torch.cat([samples(frame) for frame in decoded], dim=-1)
        stop = None if frames is None else start + frames
        return audio[:, start:stop].contiguous(), decoded[0].sample_rate
    with decoding(path), soundfile.SoundFile(native(path)) as file:
        found = _soundfile_info(path, file)
        start = file.seek(min(start, file.frames))
        wanted = file.frames - start if frames is None else min(frames, file.frames - start)
        pieces = list(_pieces(file, wanted))  # a damaged header may promise terabytes
    if not found.frames:
        raise no_audio(path)
    audio = torch.cat(pieces or [torch.zeros(found.channels, 0)], dim=-1)
    if audio.shape[-1] < wanted:
        raise truncated(path, found.frames, start + audio.shape[-1])
    return audio, found.samplerate


def _pieces(file: soundfile.SoundFile, frames: int) -> Iterator[Tensor]:
    """`frames` from here on, or as many as there are."""
    while frames > 0 and len(piece := file.read(min(frames, LONG), "float32", always_2d=True)):
        frames -= len(piece)
        yield torch.from_numpy(piece.T)


def resized(pieces: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """Cut what comes in pieces (C, n) anew, into (C, size) and a last shorter one."""
    held: list[Tensor] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += piece.shape[-1]
        if count < size:
            continue
        joined = torch.cat(held, dim=-1)
        for start in range(0, count - size + 1, size):
            yield joined[:, start : start + size]
        count %= size
        held = [joined[:, joined.shape[-1] - count :]]
    if count:
        yield torch.cat(held, dim=-1)


def _reads_soundfile(path: Path, stream: int) -> bool:
    """Whether libsndfile takes a file: by its name, unless it starts like something else."""
    check_size(path)
    if path.suffix.lower() not in SOUNDFILE_SUFFIXES or stream:
        return False
    start = head(path)
    match start[:4]:
        case b"RIFF" | b"RF64":
            layout = wav_layout(path)
            return layout is None or layout.tag in WAV_TAGS
        case b"OggS":
            return start[28:].startswith(OGG_CODECS)
        case b"caff":
            return start[28:32] == b"lpcm"
        case b"fLaC":  # 36 bits are the length, 0 where the encoder wrote to a pipe
            return bool(int.from_bytes(start[21:26], "big") & (2**36 - 1))
    if start[:3] == b"ID3":
        return path.suffix.lower() == ".flac"
    mpeg = len(start) > 1 and start[0] == 0xFF and start[1] & 0xE0 == 0xE0
    return not (mpeg or start[4:8] == b"ftyp" or start[:4] in (MATROSKA, ASF))


def _soundfile_info(path: Path, file: soundfile.SoundFile) -> AudioInfo:
    name = file.subtype
    subtype = name if name.startswith(("PCM_", "FLOAT", "DOUBLE")) else name.lower()
    plausible(path, file.samplerate, file.channels)
    return AudioInfo(file.samplerate, file.channels, file.frames, subtype)


def _soundfile_blocks(path: Path, size: int) -> Iterator[Tensor]:
    done = 0
    with decoding(path), soundfile.SoundFile(native(path)) as file:
        promised = _soundfile_info(path, file).frames
        while len(block := file.read(size, dtype="float32", always_2d=True)):
            done += len(block)
            yield torch.from_numpy(block.T)
    if done < promised:
        raise truncated(path, promised, done)
