"""WAV: its chunks, its samples as a map of memory, and its header as it is written.

A WAV is written with 28 unused bytes in front, which become the `ds64` chunk of an RF64 where the
file turns out to be longer than 32 bits can count (EBU Tech 3306). So no length is needed ahead.
"""

import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from demucs_lightning.audio.files import existing, truncated

LARGEST = 2**32 - 2  # bytes that a RIFF can count; 0xFFFFFFFF means that ds64 says it
OPEN_END = 0xFFFFFFFF
WIDTHS = {"PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4}  # bytes of a sample
INFO = {
    "title": b"INAM",
    "artist": b"IART",
    "album": b"IPRD",
    "track": b"ITRK",
    "date": b"ICRD",
    "genre": b"IGNR",
    "comment": b"ICMT",
    "copyright": b"ICOP",
}


@dataclass(frozen=True)
class WavLayout:
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
    path = existing(path)
    layout = wav_layout(path)
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


def wav_layout(path: Path) -> WavLayout | None:
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
    if size == OPEN_END:  # RF64, or the length was unknown to a program that wrote to a pipe
        size = long_size or length - offset
    if size > length - offset:
        width = max(align, 1)
        raise truncated(path, size // width, (length - offset) // width)
    return WavLayout(tag, channels, bits, offset, size)


class WavFile:
    """A WAV that is written piece by piece, and becomes an RF64 where it must.

    Takes blocks (C, t), of integers for PCM (the steps of the format) and of float32 for FLOAT.
    """

    def __init__(  # noqa: PLR0913
        self,
        path: Path,
        *,
        samplerate: int,
        channels: int,
        subtype: str,
        info: Mapping[str, str],
        id3: bytes = b"",
    ) -> None:
        self._frame = WIDTHS[subtype] * channels
        self._subtype = subtype
        self._size = 0
        self._file: BinaryIO = path.open("wb")
        chunks = _chunk(b"fmt ", _format(samplerate, channels, subtype)) + _info(info)
        chunks += _chunk(b"id3 ", id3) if id3 else b""
        self._file.write(b"RIFF" + bytes(4) + b"WAVE" + _chunk(b"JUNK", bytes(28)) + chunks)
        self._file.write(b"data" + bytes(4))
        self._offset = self._file.tell()

    def write(self, block: Tensor) -> None:
        samples = block.T.contiguous().numpy()
        if self._subtype == "PCM_24":
            samples = samples.astype("<i4").reshape(-1, 1).view(np.uint8)[:, :3]
        else:
            samples = samples.astype({"PCM_16": "<i2", "PCM_32": "<i4"}.get(self._subtype, "<f4"))
        content = samples.tobytes()
        self._file.write(content)
        self._size += len(content)

    def close(self) -> None:
        """Write the lengths into the header."""
        self._file.write(bytes(self._size % 2))
        whole = self._offset + self._size + self._size % 2 - 8
        large = whole > LARGEST
        self._file.seek(0)
        self._file.write(struct.pack("<4sI", b"RF64" if large else b"RIFF", min(whole, OPEN_END)))
        if large:
            frames = self._size // self._frame
            self._file.seek(12)
            self._file.write(_chunk(b"ds64", struct.pack("<QQQI", whole, self._size, frames, 0)))
            self._file.seek(4)
            self._file.write(struct.pack("<I", OPEN_END))
        self._file.seek(self._offset - 4)
        self._file.write(struct.pack("<I", OPEN_END if large else self._size))
        self._file.close()

    def abort(self) -> None:
        with suppress(OSError):
            self._file.close()


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def _format(samplerate: int, channels: int, subtype: str) -> bytes:
    """The `fmt ` chunk; more than two channels need the long one, which says where each plays."""
    width = WIDTHS[subtype]
    tag = 3 if subtype == "FLOAT" else 1
    numbers = (channels, samplerate, samplerate * channels * width, channels * width, 8 * width)
    if channels <= 2:
        return struct.pack("<HHIIHH", tag, *numbers)
    guid = struct.pack("<H", tag) + bytes.fromhex("000000001000800000aa00389b71")
    masks = {3: 0x7, 4: 0x33, 5: 0x37, 6: 0x3F, 7: 0x13F, 8: 0x63F}
    mask = masks.get(channels, 0)  # 0: the channels have no places
    return struct.pack("<HHIIHHHHI", 0xFFFE, *numbers, 22, 8 * width, mask) + guid


def _info(tags: Mapping[str, str]) -> bytes:
    """A LIST chunk of the tags that WAV knows; padded, so that the samples can be mapped."""
    texts = {INFO[key]: text.encode() + b"\0" for key, text in tags.items() if key in INFO and text}
    if not texts:
        return b""
    content = b"INFO" + b"".join(_chunk(name, text) for name, text in texts.items())
    return _chunk(b"LIST", content + _chunk(b"IJNK", b"\0\0") * (len(content) % 4 // 2))
