"""How good a separation is."""

import torch
from torch import Tensor

DELTA = 1e-7  # added to both energies, so that silence has a score


def new_sdr(references: Tensor, estimates: Tensor) -> Tensor:
    """Signal-to-distortion ratio, dB, of the MDX challenge 2021 (Mitsufuji et al.): (B, S) float64.

    10 log10((sum |reference|² + 1e-7) / (sum |reference - estimate|² + 1e-7)) over the channels and
    samples of two tensors (B, S, C, T), summed in float64. An estimate of silence scores 0. Where
    the *reference* is silent the score says how silent the estimate is: 0 if exactly, else far
    below 0 and dependent on 1e-7, as in the published definition; who averages over tracks should
    know.

    Raises ValueError if the shapes differ or are not (B, S, C, T).
    """
    if references.shape != estimates.shape or references.dim() != 4:
        shapes = f"{tuple(references.shape)} and {tuple(estimates.shape)}"
        raise ValueError(f"References and estimates must both be (B, S, C, T), not {shapes}.")
    return 10 * torch.log10(_energy(references) / _energy(references - estimates))


def _energy(audio: Tensor) -> Tensor:
    wide = audio if audio.dtype == torch.float64 else audio.float()
    return wide.square().sum(dim=(2, 3), dtype=torch.float64) + DELTA
