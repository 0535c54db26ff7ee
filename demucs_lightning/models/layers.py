"""Small building blocks shared by every Demucs: a learnt gain, embeddings, resampling,
initialisation."""

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demucs_lightning.models.precision import cast, exact, without_autocast


class LayerScale(nn.Module):
    """A learnt gain per channel, small at first so that a residual branch starts close to the
    identity (Touvron et al., 2021, "Going deeper with image transformers")."""

    def __init__(self, channels: int, init: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), float(init)))

    def forward(self, x: Tensor) -> Tensor:
        return cast(self.scale, x)[:, None] * x


class ScaledEmbedding(nn.Module):
    """An embedding stored ``scale`` times smaller than it acts, which makes it learn that much
    faster.

    ``smooth`` starts it as a random walk over the index, normalised to unit variance, so that
    neighbours are alike.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, scale: float = 10.0, smooth: bool = False
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_embeddings, embedding_dim)
        self.scale = scale
        with torch.no_grad():
            if smooth:
                walk = self.embedding.weight.cumsum(dim=0)
                self.embedding.weight.copy_(
                    walk / torch.arange(1, num_embeddings + 1)[:, None].sqrt()
                )
            self.embedding.weight.div_(scale)

    def forward(self, index: Tensor) -> Tensor:
        return self.embedding(index) * self.scale


class Resample(nn.Module):
    """Windowed-sinc resampling by the ratio ``new / old`` along the last axis: T samples to ``⌊T ·
    new / old⌋``.

    J. O. Smith's algorithm with the constants the released models were trained with: 24 zero
    crossings, cut-off at 0.945 of the lower Nyquist frequency, a squared-cosine window, each phase
    normalised to unit gain at 0 Hz.
    """

    ZEROS = 24
    ROLLOFF = 0.945
    STEPS = 64  # that one matrix product takes: at least what the window sees of the next
    kernel: Tensor

    def __init__(self, old: int, new: int) -> None:
        super().__init__()
        self.old, self.new = old, new
        self.width = math.ceil(self.ZEROS * old / (min(old, new) * self.ROLLOFF))
        self.register_buffer("kernel", self._kernel(), persistent=False)

    def _kernel(self) -> Tensor:
        """What ``STEPS · old`` samples and those around them add to ``STEPS · new``: (in, out)."""
        samples = torch.arange(-self.width, self.width + self.old) / self.old
        phases = torch.arange(self.new)[:, None] / self.new
        t = (samples - phases) * min(self.old, self.new) * self.ROLLOFF
        t = t.clamp(-self.ZEROS, self.ZEROS)
        kernel = torch.sinc(t) * torch.cos(math.pi * t / self.ZEROS / 2) ** 2
        kernel = kernel / kernel.sum(1, keepdim=True)
        ends = self.old * (self.STEPS - 1)
        moved = [F.pad(kernel, (at, ends - at)) for at in range(0, ends + 1, self.old)]
        return torch.cat(moved).T.contiguous()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """A network in half precision resamples as well as in fp32."""
        super()._apply(fn, recurse)
        if exact(self.kernel) != self.kernel.dtype:
            self.kernel = self._kernel().to(self.kernel.device, exact(self.kernel))
        return self

    def forward(self, x: Tensor) -> Tensor:
        length, block = x.shape[-1], self.STEPS * self.old
        count = math.ceil(length / block)
        after = (count + 1) * block - self.width - length
        first, last = x[..., :1], x[..., -1:]
        ends = (*x.shape[:-1], self.width), (*x.shape[:-1], after)
        padded = torch.cat([first.expand(ends[0]), x, last.expand(ends[1])], dim=-1)
        blocks = padded.to(self.kernel.dtype).unflatten(-1, (-1, block))
        seen = torch.cat([blocks[..., :-1, :], blocks[..., 1:, : 2 * self.width]], dim=-1)
        with without_autocast(x):
            y = (seen @ self.kernel).flatten(-2)
        return y[..., : length * self.new // self.old].to(x.dtype)


def center_trim(x: Tensor, length: int) -> Tensor:
    """The middle ``length`` steps of ``x (..., T)``; of an odd excess the extra step goes at the
    end."""
    excess = x.shape[-1] - length
    if excess < 0:
        raise ValueError(f"cannot trim {x.shape[-1]} steps to {length}")
    return x[..., excess // 2 : x.shape[-1] - (excess - excess // 2)]


def rescale_convolutions(module: nn.Module, reference: float) -> None:
    """Divide the weights and bias of every convolution by ``sqrt(std(weight) / reference)``, in
    place ("Music Source Separation in the Waveform Domain", Défossez et al., 2019, section
    4.1.2)."""
    kinds = (nn.Conv1d, nn.ConvTranspose1d, nn.Conv2d, nn.ConvTranspose2d)
    with torch.no_grad():
        for conv in (m for m in module.modules() if isinstance(m, kinds)):
            scale = (conv.weight.std() / reference).sqrt()
            conv.weight.div_(scale)
            if conv.bias is not None:
                conv.bias.div_(scale)
