"""Hybrid Demucs (v3): the two-branch U-Net whose branches join over time
("Hybrid Spectrogram and Waveform Source Separation", Défossez, 2021, arXiv:2111.03600).

    encoder   2048 bins → 512 → 128 → 32 → 8 → 1 ─┐
                                                  + → time layer ─┐
    tencoder  T → T/4 → T/16 → T/64 → T/256 → N ──┘               │ N / 2 frames
                                                               zeros, and the skips
    tdecoder  T ← T/4 ← T/16 ← T/64 ← T/256 ← N ──┐               │
                                                  ├── time layer ─┘
    decoder   2048 bins ← 512 ← 128 ← 32 ← 8 ← 1 ─┘
"""

import torch
from torch import Tensor

from demucs_lightning.models.hybrid import HybridUNet


class HDemucs(HybridUNet):
    """Hybrid Demucs; for arguments and shapes see ``HybridUNet``.

    The decoders start from zeros: everything they know comes through the skip connections.
    """

    def check_geometry(self) -> None:
        if self.hybrid and not self.joins:
            raise ValueError(
                f"depth={len(self.encoder)} ends before the branches join: "
                "more layers or a smaller nfft are needed"
            )
        if self.hybrid and self.time_strides != self.spectral.hop_length:
            raise ValueError(
                f"nfft={self.spectral.n_fft} has a hop of {self.spectral.hop_length} samples, but "
                f"the time branch strides {self.time_strides} before it joins: they must be equal"
            )

    def bottleneck(self, x_freq: Tensor, x_time: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(x_freq), torch.zeros_like(x_time)
