"""How good a separation is: nSDR, SI-SDR and BSS Eval v4, tensors in and float64 scores out.

`new_sdr` and `si_sdr` score whole extracts (B, S, C, T); `bss_eval` scores the windows of one track
(S, C, T), `bss_eval_streamed` those of a track that never is in memory as a whole. All run on the
device that holds the audio. A score that is not defined is NaN; `median` leaves those out.
"""

from demucs_lightning.metrics.bsseval import BSSEval, bss_eval, bss_eval_streamed, median
from demucs_lightning.metrics.ratios import new_sdr, si_sdr

__all__ = ["BSSEval", "bss_eval", "bss_eval_streamed", "median", "new_sdr", "si_sdr"]
