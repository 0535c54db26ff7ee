"""Ratios of energies, without filters: the nSDR of the MDX challenge, and SI-SDR.

Both take references and estimates (B, S, C, T), sum in float64 over the channels and samples of
each source, and give dB (B, S) float64.
"""

import torch
from torch import Tensor

DELTA = 1e-7  # added to both energies of nSDR, so that silence has a score


def new_sdr(references: Tensor, estimates: Tensor) -> Tensor:
    """Signal-to-distortion ratio, dB, of the MDX challenge 2021 (Mitsufuji et al.): (B, S) float64.

    10 log10((sum |reference|² + 1e-7) / (sum |reference - estimate|² + 1e-7)) over the channels and
    samples of two tensors (B, S, C, T), summed in float64. An estimate of silence scores 0. Where
    the *reference* is silent the score says how silent the estimate is: 0 if exactly, else far
    below 0 and dependent on 1e-7, as in the published definition; who averages over tracks should
    know.

    Raises ValueError if the shapes differ or are not (B, S, C, T).
    """
    _check(references, estimates)
    signal, error = _energy(references), _energy(references - estimates)
    return 10 * torch.log10((signal + DELTA) / (error + DELTA))


def si_sdr(references: Tensor, estimates: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio, dB (Le Roux et al. 2019): (B, S) float64.

    10 log10(|a r|² / |a r - e|²) with a = <e, r> / |r|², over all channels and samples of a source
    at once: one gain for the source, not one per channel, so a wrong balance between the channels
    counts as an error. No mean is removed and nothing is added to the energies. A perfect estimate,
    whatever its gain, scores inf, or as much as rounding lets it. NaN where the reference or the
    estimate is all zeros, since no gain is defined.

    Raises ValueError if the shapes differ or are not (B, S, C, T).
    """
    _check(references, estimates)
    pairs = zip(references.unbind(1), estimates.unbind(1), strict=True)
    # One source at a time: float64 copies of a whole track's stems would be large.
    return torch.stack([_scale_invariant(*pair) for pair in pairs], dim=1)


def _scale_invariant(reference: Tensor, estimate: Tensor) -> Tensor:
    reference, estimate = reference.double().flatten(1), estimate.double().flatten(1)
    energy = reference.square().sum(1)
    target = reference * ((reference * estimate).sum(1) / energy)[:, None]
    return 10 * torch.log10(target.square().sum(1) / (target - estimate).square().sum(1))


def _check(references: Tensor, estimates: Tensor) -> None:
    if references.shape != estimates.shape or references.dim() != 4:
        shapes = f"{tuple(references.shape)} and {tuple(estimates.shape)}"
        raise ValueError(f"References and estimates must both be (B, S, C, T), not {shapes}.")


def _energy(audio: Tensor) -> Tensor:
    wide = audio if audio.dtype == torch.float64 else audio.float()
    return wide.square().sum(dim=(2, 3), dtype=torch.float64)
