"""Spectrograms of excerpts as small PNG files: log frequency, dB, one scale of colours for all.

The pictures hold 8 bits a point and a palette (PNG, colour type 3), which is a quarter of what true
colours take.
"""

import math
import struct
import zlib
from collections.abc import Sequence
from functools import cache

import matplotlib
import numpy as np
import torch
from torch import Tensor

from demucs_lightning.figures import RANGE

HEIGHT, WIDTH = 112, 440  # points of a picture
LOWEST = 40.0  # Hz
WINDOW = 0.093  # seconds: semitones part from 200 Hz on
FLOOR = -140.0  # dB, of silence
SHADES = 64  # 1.25 dB each
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def levels(audio: Tensor, samplerate: int) -> Tensor:
    """``(C, T)`` as levels in dB ``(HEIGHT, columns)``, from the highest frequency down."""
    mono = audio.float().mean(0)
    n_fft = 2 ** round(math.log2(WINDOW * samplerate))
    hop = max(n_fft // 8, math.ceil(len(mono) / WIDTH))
    padded = torch.nn.functional.pad(mono, (0, max(0, n_fft - len(mono))))
    window = torch.hann_window(n_fft)
    spec = torch.stft(padded, n_fft, hop, window=window, center=False, return_complex=True)
    power = _bands(n_fft, samplerate) @ torch.view_as_real(spec).square().sum(-1)
    return 10 * torch.log10(power.flip(0) / window.sum() ** 2 + 10 ** (FLOOR / 10))


def pictures(sounds: Sequence[Tensor], samplerate: int) -> list[bytes]:
    """A PNG of each of the sounds ``(C, T)``; the loudest point of all has the brightest colour."""
    found = [levels(sound, samplerate) for sound in sounds]
    top = max(FLOOR + RANGE, *(float(each.max()) for each in found))
    return [png(_shades(each, top)) for each in found]


def frequencies(samplerate: int) -> list[tuple[str, float]]:
    """Marks for the axis: a name, and its place in percent from the top."""
    high = samplerate / 2
    marks = [(100.0, "100"), (1000.0, "1k"), (10000.0, "10k")]
    return [
        (name, 100 * (1 - math.log(hertz / LOWEST) / math.log(high / LOWEST)))
        for hertz, name in marks
        if hertz < high * 0.9
    ]


def legend() -> bytes:
    """All colours from the darkest to the brightest, as a PNG of one line."""
    return png(torch.arange(SHADES, dtype=torch.uint8)[None])


def png(shades: Tensor) -> bytes:
    """A picture of palette entries ``(height, width)`` uint8."""
    height, width = shades.shape
    lines = np.zeros((height, width + 1), dtype=np.uint8)  # a line starts with its filter: none
    lines[:, 1:] = shades.numpy()
    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"PLTE", _palette()), (b"IDAT", zlib.compress(lines.tobytes(), 9)))
    return SIGNATURE + b"".join(_chunk(*each) for each in (*chunks, (b"IEND", b"")))


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def _shades(found: Tensor, top: float) -> Tensor:
    place = 1 + (found - top) / RANGE
    return (place.clamp(0, 1) * (SHADES - 1)).round().to(torch.uint8)


@cache
def _palette() -> bytes:
    colors = matplotlib.colormaps["magma"](np.linspace(0, 1, SHADES))[:, :3]
    return (255 * colors).round().astype(np.uint8).tobytes()


@cache
def _bands(n_fft: int, samplerate: int) -> Tensor:
    """Triangles of one height over the bins of an STFT, evenly spaced in log frequency."""
    ratio = samplerate / 2 / LOWEST
    centers = LOWEST * ratio ** torch.linspace(0, 1, HEIGHT, dtype=torch.float64)
    centers = centers * n_fft / samplerate
    # At least a bin to each side: below, the STFT is coarser than the picture.
    reach = (centers * (ratio ** (1 / (HEIGHT - 1)) - 1)).clamp(min=1)
    bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64)
    weights = (1 - (bins - centers[:, None]).abs() / reach[:, None]).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).float()
