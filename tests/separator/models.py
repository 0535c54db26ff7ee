"""Small models for tests of separation, and recordings for them."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from demucs_lightning import Demucs, pretrained
from demucs_lightning.pretrained import Package

RATE = 8000
FOUR = ["drums", "bass", "other", "vocals"]
SMALL = {"channels": 4, "depth": 3, "samplerate": RATE, "segment": 2}


class Shares(nn.Module):
    """Stem number s is the mixture times ``gains[s]``; costs nothing. Counts its calls."""

    samplerate, segment, max_segment = RATE, 1.0, math.inf

    def __init__(
        self, gains=(0.5, 0.25, 0.125, 0.0625), sources=tuple(FOUR), audio_channels: int = 2
    ) -> None:
        super().__init__()
        self.gains, self.sources, self.audio_channels = gains, list(sources), audio_channels
        self.calls = 0

    def valid_length(self, length: int) -> int:
        return length

    def forward(self, mixture: Tensor) -> Tensor:
        self.calls += 1
        return mixture[:, None] * torch.tensor(self.gains)[:, None, None]


def small(seed: int = 0, sources=FOUR, **changes) -> Demucs:
    torch.manual_seed(seed)
    return Demucs(list(sources), **{**SMALL, **changes}).eval()


def small_file(path: Path, seed: int = 0) -> Path:
    """Weights in fp32, of a model that does something."""
    package = Package("Demucs", {"sources": FOUR, **SMALL}, small(seed).state_dict(), str(path))
    pretrained.write(package, path, half=False)
    return path


def noise(channels: int = 2, frames: int = 20_000, seed: int = 0, loud: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return loud * torch.randn(channels, frames, generator=generator)
