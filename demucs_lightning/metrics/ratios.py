"""Ratios of energies, without filters: the nSDR of the MDX challenge, and SI-SDR.

Both sum in float64 over the channels and samples of each source, and give dB in float64; of whole
tensors, or `streamed` of a track that is read piece by piece.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

DELTA = 1e-7  # added to both energies of nSDR, as published

Pair = tuple[Tensor, Tensor]  # references and estimates, both (..., C, T)


class Ratios(NamedTuple):
    """Of each source, (...): dB, and whether the reference is all zeros."""

    nsdr: Tensor
    si_sdr: Tensor
    silent: Tensor


def new_sdr(references: Tensor, estimates: Tensor) -> Tensor:
    """Signal-to-distortion ratio, dB, of the MDX challenge 2021 (Mitsufuji et al.): (B, S) float64.

    10 log10((sum |reference|² + 1e-7) / (sum |reference - estimate|² + 1e-7)) over the channels and
    samples of two tensors (B, S, C, T), summed in float64. An estimate of silence scores 0. Where
    the *reference* is silent the formula gives 0 if the estimate is, else a number far below 0 that
    says how loud it is in units of 1e-7: the scores of a track leave it out.

    Raises ValueError if the shapes differ or are not (B, S, C, T).
    """
    _check(references, estimates)
    return _nsdr(_energy(references), _energy(references - estimates))


def si_sdr(references: Tensor, estimates: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio, dB (Le Roux et al. 2019): (B, S) float64.

    10 log10(|a r|² / |a r - e|²) with a = <e, r> / |r|², over all channels and samples of a source
    at once: one gain for the source, not one per channel, so a wrong balance between the channels
    counts as an error. No mean is removed and nothing is added to the energies. A perfect estimate,
    whatever its gain, scores inf, or as much as rounding lets it; one that has nothing of the
    reference, <e, r> = 0, scores -inf. NaN where the reference or the estimate is all zeros, and
    only there, since no gain is defined.

    Raises ValueError if the shapes differ or are not (B, S, C, T).
    """
    _check(references, estimates)
    pairs = zip(references.unbind(1), estimates.unbind(1), strict=True)
    # One source at a time: float64 copies of a whole track's stems would be large.
    found = [streamed(lambda pair=pair: [pair]) for pair in pairs]
    return torch.stack([each.si_sdr for each in found], dim=1)


def streamed(pieces: Callable[[], Iterable[Pair]]) -> Ratios:
    """Both of a track: `pieces`, which is called twice, gives it from start to end as pairs
    (..., C, t) of any length; the scores are (...)."""
    signal = distortion = product = torch.zeros(())
    for references, estimates in _wide(pieces()):
        signal = signal + _energy(references)
        distortion = distortion + _energy(references - estimates)
        product = product + (references * estimates).sum(dim=(-2, -1))
    gain = (product / signal)[..., None, None]
    target = error = torch.zeros(())
    for references, estimates in _wide(pieces()):
        target = target + _energy(gain * references)
        error = error + _energy(gain * references - estimates)
    return Ratios(_nsdr(signal, distortion), 10 * torch.log10(target / error), signal == 0)


def _nsdr(signal: Tensor, distortion: Tensor) -> Tensor:
    return 10 * torch.log10((signal + DELTA) / (distortion + DELTA))


def _wide(pieces: Iterable[Pair]) -> Iterator[Pair]:
    return ((references.double(), estimates.double()) for references, estimates in pieces)


def _check(references: Tensor, estimates: Tensor) -> None:
    if references.shape != estimates.shape or references.dim() != 4:
        shapes = f"{tuple(references.shape)} and {tuple(estimates.shape)}"
        raise ValueError(f"References and estimates must both be (B, S, C, T), not {shapes}.")


def _energy(audio: Tensor) -> Tensor:
    wide = audio if audio.dtype == torch.float64 else audio.float()
    return wide.square().sum(dim=(-2, -1), dtype=torch.float64)
