"""Models that cost nothing, and noise for them."""

import math

import torch
from torch import Tensor, nn

SOURCES = ["drums", "bass", "vocals"]
RATE = 1000


class Identity(nn.Module):
    """Every stem is the mixture.

    It wants lengths that are ``extra`` above a multiple of ``multiple``; ``fixed``: as long as its
    segment, as a model does whose training set it. ``sizes`` are the shapes that it saw.
    """

    samplerate, audio_channels, sources = RATE, 2, SOURCES

    def __init__(
        self, multiple: int = 1, extra: int = 0, *, segment: float = 0.1, fixed: bool = False
    ) -> None:
        super().__init__()
        self.multiple, self.extra, self.segment, self.fixed = multiple, extra, segment, fixed
        self.sizes: list[tuple[int, ...]] = []

    @property
    def max_segment(self) -> float:
        return self.segment if self.fixed else math.inf

    def valid_length(self, length: int) -> int:
        if self.fixed:
            return int(self.segment * RATE)
        return math.ceil(length / self.multiple) * self.multiple + self.extra

    def forward(self, mixture: Tensor) -> Tensor:
        self.sizes.append(tuple(mixture.shape))
        return stems_of(mixture)


class Placed(Identity):
    """Stems that tell where in the input a sample lies, and what else is in it."""

    def forward(self, mixture: Tensor) -> Tensor:
        place = torch.linspace(0.5, 2, mixture.shape[-1])
        stems = super().forward(mixture * place + mixture.mean(-1, keepdim=True))
        return stems * torch.tensor([1.0, -2.0, 3.0])[:, None, None]


class Broken(Identity):
    """A model that must not run."""

    def forward(self, mixture: Tensor) -> Tensor:
        raise AssertionError("it ran")


def stems_of(mixture: Tensor) -> Tensor:
    return mixture[:, None].expand(-1, len(SOURCES), -1, -1)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
