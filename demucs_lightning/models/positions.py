"""Where a token stands, in time or in frequency and time, as sinusoids of many rates.

Positions are counted, and their phases computed, in fp32 or better, whatever the precision of the
network: half precision cannot count to 300.
"""

import math

import torch
from torch import Tensor

from demucs_lightning.models.precision import exact


def count(length: int, like: Tensor) -> Tensor:
    """0, 1, …, ``length`` - 1 on the device of ``like``."""
    return torch.arange(length, device=like.device, dtype=exact(like))


def sinusoids(positions: Tensor, dim: int, max_period: float) -> Tensor:
    """Cosines, then sines, of ``positions (..., T)`` at ``dim / 2`` rates: ``(..., T, dim)``."""
    half = dim // 2
    phases = positions[..., None] / max_period ** (count(half, positions) / (half - 1))
    return torch.cat([phases.cos(), phases.sin()], dim=-1)


def grid_positions(x: Tensor, max_period: float) -> Tensor:
    """Positions ``(F, N, D)`` for ``x (B, D, F, N)``: half of D tells the frame, half the bin.

    Sines and cosines alternate.
    """
    dim, bins, frames = x.shape[1:]
    half = dim // 2
    rates = torch.exp(2 * count(half // 2, x) * -(math.log(max_period) / half))

    def along(length: int) -> Tensor:
        phases = count(length, x)[:, None] * rates
        return torch.stack([phases.sin(), phases.cos()], dim=-1).flatten(1)

    of_frame, of_bin = along(frames)[None], along(bins)[:, None]
    return torch.cat([of_frame.expand(bins, -1, -1), of_bin.expand(-1, frames, -1)], dim=-1)


def moved(positions: Tensor, everywhere: float, each: float, factor: float) -> Tensor:
    """``positions (B, T)`` as CAPE changes them ("CAPE: Encoding Relative Positions with Continuous
    Augmented Positional Embeddings", Likhomanenko et al., 2021, arXiv:2106.03143).

    All of an example move by up to ``everywhere``, each on its own by up to ``each``, and they are
    scaled by 1 / ``factor`` to ``factor``.
    """
    positions = positions + _uniform(positions[:, :1], everywhere) + _uniform(positions, each)
    return positions * _uniform(positions[:, :1], math.log(factor)).exp()


def _uniform(like: Tensor, limit: float) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format).uniform_(-limit, limit)
