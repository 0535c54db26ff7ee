"""BSS Eval v4: SDR, ISR, SIR and SAR of every window of a track, as museval 0.4.1 computes them.

The distortion filters are those of the whole track (see `projection`), what they are applied to is
one window at a time, with silence around it (Stöter, Liutkus and Ito 2018). With r the reference of
a source, e its estimate, P_own e and P e the projections of e on the delayed r and on those of all
references, and energies over the channels and window + taps - 1 samples:

    SDR = |r|² / |e - r|²                   ISR = |r|² / |P_own e - r|²
    SIR = |P_own e|² / |P e - P_own e|²     SAR = |P e|² / |e - P e|²

in dB. Only these energies are kept, never a filtered signal, and they are summed up from spectra
(Parseval), so nothing is transformed back.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from demucs_lightning.metrics.projection import (
    Correlations,
    Read,
    joint_filters,
    own_filters,
    silent,
)

BATCH_BYTES = 3 << 23  # of audio, which decides how many windows are taken together
BINS = 1024  # of a spectrum taken together, so that what is made of them stays in a core's cache


class BSSEval(NamedTuple):
    """dB, each (S, windows) float64, or (S,) after `medians`."""

    sdr: Tensor
    isr: Tensor
    sir: Tensor
    sar: Tensor

    def medians(self) -> "BSSEval":
        """Over the windows that have a score, which is how museval scores a track: each (S,)."""
        return BSSEval(*(median(scores) for scores in self))


def median(scores: Tensor) -> Tensor:
    """Over the last axis, without the NaN; NaN where nothing is left. Of an even number it is the
    mean of the two in the middle, as in NumPy, and not the lower one, as in torch."""
    ordered = scores.sort(dim=-1).values  # NaN come last
    present = (~ordered.isnan()).sum(-1, keepdim=True)
    middle = ((present - 1).clamp(min=0) // 2, present // 2)
    low, high = (ordered.gather(-1, each.clamp(max=scores.shape[-1] - 1)) for each in middle)
    return torch.where(present > 0, (low + high) / 2, torch.nan).squeeze(-1)


def bss_eval(
    references: Tensor,
    estimates: Tensor,
    *,
    window: int = 44100,
    hop: int | None = None,
    taps: int = 512,
) -> BSSEval:
    """Scores of one track's estimates against its references, both (S, C, T), in dB.

    `window` and `hop` are in samples, `hop` a window if not given, `taps` is the length of the
    distortion filters. There are (T - window) // hop + 1 windows, without what is left over at the
    end, and one of all samples if the track is shorter. Computes in float64 on the audio's device;
    beside the audio it needs memory for the (S C taps)² normal equations, not for the length.

    NaN for all sources of a window in which the channels of any reference or of any estimate add up
    to zero throughout, and everywhere if one source is like that all the time, where museval gives
    up. Infinite where the error is exactly zero. Raises ValueError if the shapes differ or are not
    (S, C, T), if there are no samples, if values are not finite, or a length is not positive.
    """
    if references.shape != estimates.shape or references.dim() != 3:
        shapes = f"{tuple(references.shape)} and {tuple(estimates.shape)}"
        raise ValueError(f"References and estimates must both be (S, C, T), not {shapes}.")

    def read(start: int, stop: int) -> tuple[Tensor, Tensor]:
        return references[..., start:stop], estimates[..., start:stop]

    return bss_eval_streamed(read, references.shape[-1], window=window, hop=hop, taps=taps)


@torch.no_grad()
def bss_eval_streamed(
    read: Read, length: int, *, window: int = 44100, hop: int | None = None, taps: int = 512
) -> BSSEval:
    """Like `bss_eval`, of a track of `length` samples that `read` gives piece by piece.

    `read(start, stop)` returns references and estimates, both (S, C, stop - start), of any numeric
    type and about two seconds long. It is asked for the whole track twice, from start to end with
    small overlaps. Memory does not grow with the length.
    """
    hop = window if hop is None else hop
    named = {"length": length, "window": window, "hop": hop, "taps": taps}
    for name, value in named.items():
        if value < 1:
            raise ValueError(f"{name}={value} samples is not positive.")
    window = min(window, length)
    count = (length - window) // hop + 1
    correlations = Correlations(read, length, taps)
    sources = read(0, 1)[0].shape[0]
    if correlations.silent:
        shape = (4, sources, count)
        return BSSEval(*correlations.references.new_full(shape, torch.nan))
    scorer = _Scorer(correlations, sources, window)
    del correlations
    parts = []
    for first in range(0, count, scorer.batch):
        last = min(first + scorer.batch, count) - 1
        pair = read(first * hop, last * hop + window)
        parts.append(scorer.scores(*(each.unfold(-1, window, hop) for each in pair)))
    return BSSEval(*torch.cat(parts, dim=-1))


class _Scorer:
    """The filters of a track as spectra, and the scores of windows by them."""

    def __init__(self, correlations: Correlations, sources: int, window: int) -> None:
        joint, own = joint_filters(correlations), own_filters(correlations, sources)
        channels, taps = joint.shape[0], joint.shape[-1]
        self.window = window
        self.n_fft = _fast_length(window + taps - 1)
        self.joint = torch.fft.rfft(joint, n=self.n_fft)  # (n, n, F)
        self.own = torch.fft.rfft(own, n=self.n_fft)  # (S, C, C, F)
        self.batch = max(1, BATCH_BYTES // (2 * channels * self.n_fft * 8))
        self.silence = joint.new_zeros(2, *own.shape[:2], self.batch, self.n_fft)

    def scores(self, references: Tensor, estimates: Tensor) -> Tensor:
        """SDR, ISR, SIR and SAR (4, S, windows) of windows (S, C, windows, samples)."""
        audio = self.silence[..., : references.shape[2], :]  # the rest of a window stays silent
        audio[0, ..., : self.window] = references
        audio[1, ..., : self.window] = estimates
        unheard = silent(audio.transpose(2, 3)).any(1).any(0)
        spectra = torch.fft.rfft(audio)
        spectra[..., [0, -1]] *= 0.5**0.5  # every other frequency stands for its negative as well
        parts = zip(
            *(each.split(BINS, -1) for each in (self.own, self.joint, spectra)), strict=True
        )
        # Squares of spectra add up to n_fft / 2 times the energy (Parseval).
        energies = torch.stack([_energies(*each) for each in parts]).sum(0) * (2 / self.n_fft)
        signal, own, joint, error, spatial, interference, artifacts = energies
        signals = torch.stack([signal, signal, own, joint])
        errors = torch.stack([error, spatial, interference, artifacts])
        scores = torch.where(errors == 0, torch.inf, 10 * torch.log10(signals / errors))
        return scores.masked_fill(unheard, torch.nan)


def _fast_length(length: int) -> int:
    """The next even number that has no prime factor above 5: an FFT of it is quick."""
    powers = [3**b * 5**c for b in range(20) for c in range(14)]
    return min(power << max(1, (-(-length // power) - 1).bit_length()) for power in powers)


def _energies(own: Tensor, joint: Tensor, spectra: Tensor) -> Tensor:
    """|r|², |P_own e|², |P e|², |e - r|², |P_own e - r|², |P e - P_own e|² and |e - P e|² of some
    frequencies: (7, S, windows), of filters (S, C, C, F) and (n, n, F) and spectra (2, S, C,
    windows, F).
    """
    references, estimates = spectra
    by_own = _filtered(own, references)
    by_all = _filtered(joint, references.flatten(0, 1)).view_as(by_own)
    parts = (
        references,
        by_own,
        by_all,
        estimates - references,
        by_own - references,
        by_all - by_own,
        estimates - by_all,
    )
    # Of complex numbers, or over two axes at once, the norm takes many times as long.
    real = (torch.view_as_real(each).flatten(-2) for each in parts)
    return torch.stack([torch.linalg.vector_norm(each, dim=-1).square().sum(1) for each in real])


def _filtered(filters: Tensor, spectra: Tensor) -> Tensor:
    """(..., m, i, F) applied to (..., i, windows, F): (..., m, windows, F)."""
    # With frequencies last and in a few KB each, this takes a third of a product of matrices.
    pairs = zip(filters.unsqueeze(-2).unbind(-3), spectra.unsqueeze(-4).unbind(-3), strict=True)
    filtered = torch.mul(*next(pairs))
    for one, spectrum in pairs:
        filtered.addcmul_(one, spectrum)
    return filtered
