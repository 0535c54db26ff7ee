"""All metrics of one track: nSDR and SI-SDR of the whole, BSS Eval v4 of every second of it.

Audio is read in pieces, so memory does not grow with the length of a track.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor

from demucs_lightning.evaluation.results import WINDOWED, SourceScores
from demucs_lightning.metrics import bss_eval_streamed
from demucs_lightning.metrics.projection import Read
from demucs_lightning.metrics.ratios import streamed

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
NAMES = {
    "nsdr": "nSDR",
    "sdr": "SDR",
    "isr": "ISR",
    "sir": "SIR",
    "sar": "SAR",
    "si_sdr": "SI-SDR",
}
MAIN = ("nsdr", "sdr")  # those that papers print
FULL = {  # which nSDR and which SDR, where there is no room for the definition
    "nsdr": "nSDR (Music Demixing Challenge 2021)",
    "si_sdr": "SI-SDR (Le Roux et al. 2019)",
    **{name: f"{NAMES[name]} (BSS Eval v4 as of museval)" for name in WINDOWED},
}


def score(
    read: Read, length: int, *, samplerate: int, sources: Sequence[str]
) -> dict[str, SourceScores]:
    """The scores of each source of a track of ``length`` samples.

    ``read(start, stop)`` gives references and estimates, both (S, C, stop - start). A source whose
    reference is all zeros is silent. NaN where a score is not defined: nSDR of a silent reference;
    SI-SDR of a silent reference or an estimate of all zeros; BSS Eval of all sources, in each
    window in which the channels of any reference or estimate add up to zero throughout, and in all
    windows where they do from start to end, which are museval's rules.
    """
    ratios = streamed(partial(_pieces, read, length))
    windows = bss_eval_streamed(read, length, window=samplerate, hop=samplerate, taps=TAPS)
    rows = zip(sources, *ratios, *windows, strict=True)
    return {
        name: SourceScores(
            bool(silent),
            math.nan if silent else float(nsdr),
            float(si_sdr),
            *(values.tolist() for values in (sdr, isr, sir, sar)),
        )
        for name, nsdr, si_sdr, silent, sdr, isr, sir, sar in rows
    }


def _pieces(read: Read, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    return (read(start, min(start + PIECE, length)) for start in range(0, length, PIECE))
