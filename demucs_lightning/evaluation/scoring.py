"""All metrics of one track: nSDR and SI-SDR of the whole, BSS Eval v4 of every second of it.

Audio is read in pieces, so memory does not grow with the length of a track.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from demucs_lightning.evaluation.results import SourceScores
from demucs_lightning.metrics import bss_eval_streamed
from demucs_lightning.metrics.ratios import DELTA

TAPS = 512
PIECE = 2**17  # samples that are read at a time

BSS = (
    "BSS Eval v4 (SiSEC 2018), as museval 0.4.1 computes it: filters of 512 taps of the whole "
    "track, windows of 1 s, hop 1 s; a track's score is the median over its windows that have one"
)
DEFINITIONS = {
    "nsdr": (
        "SDR of the Music Demixing Challenge 2021: 10 log10((|r|^2 + 1e-7) / (|r - e|^2 + 1e-7)) "
        "over all channels and samples of a track, in dB; not defined for a silent reference"
    ),
    "si_sdr": (
        "scale-invariant SDR (Le Roux et al. 2019): 10 log10(|a r|^2 / |a r - e|^2), "
        "a = <e, r> / |r|^2, over all channels and samples of a track, in dB"
    ),
    "sdr": f"source-to-distortion ratio of {BSS}, in dB",
    "isr": f"source image-to-spatial distortion ratio of {BSS}, in dB",
    "sir": f"source-to-interference ratio of {BSS}, in dB",
    "sar": f"sources-to-artifacts ratio of {BSS}, in dB",
}

Read = Callable[[int, int], tuple[Tensor, Tensor]]


def score(
    read: Read, length: int, *, samplerate: int, sources: Sequence[str]
) -> dict[str, SourceScores]:
    """The scores of each source of a track of ``length`` samples.

    ``read(start, stop)`` gives references and estimates, both (S, C, stop - start). A source whose
    reference is all zeros is silent and has no score, and neither has any other in BSS Eval for as
    long as one is silent, which is museval's rule.
    """
    ratios = _ratios(read, length)
    windows = bss_eval_streamed(read, length, window=samplerate, hop=samplerate, taps=TAPS)
    rows = zip(sources, *ratios, *windows, strict=True)
    return {
        name: SourceScores(
            bool(silent),
            float(nsdr),
            float(si_sdr),
            *(values.tolist() for values in (sdr, isr, sir, sar)),
        )
        for name, silent, nsdr, si_sdr, sdr, isr, sir, sar in rows
    }


def _ratios(read: Read, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which references are silent, nSDR and SI-SDR, each (S,), as `metrics` has them for tensors,
    but in pieces."""
    signal = distortion = product = torch.zeros(())
    for references, estimates in _pieces(read, length):
        signal = signal + _energy(references)
        distortion = distortion + _energy(references - estimates)
        product = product + (references * estimates).sum(dim=(1, 2))
    gain = (product / signal)[:, None, None]
    target = error = torch.zeros(())
    for references, estimates in _pieces(read, length):
        target = target + _energy(gain * references)
        error = error + _energy(gain * references - estimates)
    nsdr = 10 * torch.log10((signal + DELTA) / (distortion + DELTA))
    silent = signal == 0
    return silent, nsdr.masked_fill(silent, math.nan), 10 * torch.log10(target / error)


def _pieces(read: Read, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, length, PIECE):
        references, estimates = read(start, min(start + PIECE, length))
        yield references.double(), estimates.double()


def _energy(samples: Tensor) -> Tensor:
    return samples.square().sum(dim=(1, 2))
