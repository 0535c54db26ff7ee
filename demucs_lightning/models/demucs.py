"""Demucs, the U-Net in the waveform domain ("Music Source Separation in the Waveform Domain",
Défossez et al., 2019, arXiv:1911.13254), with the DConv branches and local attention of Hybrid
Demucs (2021).

    mixture ─ ×2 ─ encoder 1 ─ … ─ encoder L ─ [LSTM] ─ decoder L ─ … ─ decoder 1 ─ ÷2 ─ estimates
                       │               └───────── + ────────┘               │
                       └───────────────────────── + ────────────────────────┘

Constructor arguments, parameter names and shapes are those of ``demucs.demucs.Demucs`` 4.1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from demucs_lightning.models.dconv import DConv
from demucs_lightning.models.layers import Resample, center_trim, rescale_convolutions
from demucs_lightning.models.layout import (
    GLU,
    Conv1d,
    ConvTranspose1d,
    HalvesConv1d,
    channels_last,
    cut,
    rows,
    unrows,
)
from demucs_lightning.models.norms import GroupNorm
from demucs_lightning.models.precision import without_autocast, working
from demucs_lightning.models.recompute import Recomputing
from demucs_lightning.models.sequences import BLSTM


@dataclass(frozen=True)
class LayerPlan:
    """What an encoder layer and the decoder layer across from it have in common."""

    kernel_size: int
    stride: int
    context: int
    rewrite: bool
    gelu: bool
    glu: bool
    norm_groups: int  # 0: no norm
    dconv: dict[str, Any]  # arguments of DConv
    dconv_mode: int  # 1: in the encoder, 2: in the decoder, 3: in both

    def __post_init__(self) -> None:
        if self.dconv_mode not in range(4):
            raise ValueError(f"dconv_mode is {self.dconv_mode}: it must be 0, 1, 2 or 3")

    def norm(self, width: int) -> nn.Module:
        return GroupNorm(self.norm_groups, width) if self.norm_groups else nn.Identity()

    def activation(self) -> nn.Module:
        return nn.GELU() if self.gelu else nn.ReLU()

    def rewriting(self, width: int, context: int) -> list[nn.Module]:
        """A convolution that mixes channels, normed and gated: keeps ``width``."""
        if not self.rewrite:
            return []
        wide, gate = (2 * width, GLU()) if self.glu else (width, nn.ReLU())
        conv = HalvesConv1d if self.glu and not self.norm_groups else Conv1d
        return [conv(width, wide, 2 * context + 1, padding=context), self.norm(wide), gate]

    def residual(self, width: int, mode: int) -> list[nn.Module]:
        return [DConv(width, **self.dconv)] if self.dconv_mode & mode else []


class EncoderLayer(nn.Sequential):
    """Strided convolution → norm → activation → DConv → rewrite.

    ``(B, inputs, 1, T)`` to ``(B, outputs, 1, (T - kernel_size) / stride + 1)``.
    """

    def __init__(self, inputs: int, outputs: int, plan: LayerPlan) -> None:
        down = Conv1d(inputs, outputs, plan.kernel_size, plan.stride)
        super().__init__(
            down,
            plan.norm(outputs),
            plan.activation(),
            *plan.residual(outputs, 1),
            *plan.rewriting(outputs, 0),
        )


class DecoderLayer(nn.Sequential):
    """+ skip → rewrite → DConv → transposed convolution → norm → activation.

    ``(B, inputs, 1, T)`` to ``(B, outputs, 1, (T - 1) · stride + kernel_size)``. The ``last`` layer
    ends with its convolution.
    """

    def __init__(self, inputs: int, outputs: int, plan: LayerPlan, *, last: bool) -> None:
        refine = [*plan.rewriting(inputs, plan.context), *plan.residual(inputs, 2)]
        up = ConvTranspose1d(inputs, outputs, plan.kernel_size, plan.stride)
        finish = [] if last else [plan.norm(outputs), plan.activation()]
        super().__init__(*refine, up, *finish)

    def forward(self, input: Tensor, skip: Tensor) -> Tensor:
        before = (skip.shape[3] - input.shape[3]) // 2
        return super().forward(input + cut(skip, 3, before, before + input.shape[3]))


class Demucs(Recomputing):
    """``(B, C, T)`` mixtures to ``(B, S, C, T)`` estimates, for any T ≥ 1.

    Args:
        sources: names of the stems, in the order of the output.
        audio_channels: channels of the audio, 1 or 2.
        channels, growth: width of the first layer, and its factor from layer to layer.
        depth: layers of the encoder, and of the decoder.
        rewrite: a convolution with ``glu`` (else ReLU) at the end of an encoder and the start of a
            decoder layer.
        lstm_layers: layers of the LSTM between encoder and decoder, 0 for none.
        kernel_size, stride: of the strided and transposed convolutions, in steps.
        context: steps on either side that the decoder's rewrite sees.
        gelu: GELU after strided convolutions and inside DConv, else ReLU.
        norm_starts, norm_groups: GroupNorm from this layer on, with so many groups.
        dconv_mode: DConv in the encoder (1), the decoder (2), both (3) or nowhere (0).
        dconv_depth, dconv_comp, dconv_init: branches of a DConv, their compression, their initial
            LayerScale.
        dconv_attn, dconv_lstm: first layer whose DConv has local attention, an LSTM.
        normalize: bring each mixture to zero mean and unit deviation inside the network.
        resample: work at twice the sample rate.
        rescale: reference deviation of the initial weights, 0 to leave them.
        samplerate: of the audio, in Hz. segment: length to separate at, in seconds. Both describe
            the model.
        memory: what training keeps for its backward pass, see ``recompute``.
    """

    def __init__(  # noqa: PLR0913
        self,
        sources: Sequence[str],
        audio_channels: int = 2,
        channels: int = 64,
        growth: float = 2.0,
        depth: int = 6,
        rewrite: bool = True,
        lstm_layers: int = 0,
        kernel_size: int = 8,
        stride: int = 4,
        context: int = 1,
        gelu: bool = True,
        glu: bool = True,
        norm_starts: int = 4,
        norm_groups: int = 4,
        dconv_mode: int = 1,
        dconv_depth: int = 2,
        dconv_comp: float = 4,
        dconv_attn: int = 4,
        dconv_lstm: int = 4,
        dconv_init: float = 1e-4,
        normalize: bool = True,
        resample: bool = True,
        rescale: float = 0.1,
        samplerate: int = 44100,
        segment: float = 40,
        memory: str = "fast",
    ) -> None:
        super().__init__(memory)
        self.sources = list(sources)
        self.audio_channels = audio_channels
        self.kernel_size, self.stride, self.depth = kernel_size, stride, depth
        self.normalize = normalize
        self.samplerate, self.segment = samplerate, segment
        self.upsample = Resample(1, 2) if resample else None
        self.downsample = Resample(2, 1) if resample else None
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()

        inputs, outputs = audio_channels, len(self.sources) * audio_channels
        width = channels
        for index in range(depth):
            plan = LayerPlan(
                kernel_size=kernel_size,
                stride=stride,
                context=context,
                rewrite=rewrite,
                gelu=gelu,
                glu=glu,
                norm_groups=norm_groups if index >= norm_starts else 0,
                dconv={
                    "depth": dconv_depth,
                    "compress": dconv_comp,
                    "init": dconv_init,
                    "attn": index >= dconv_attn,
                    "lstm": index >= dconv_lstm,
                },
                dconv_mode=dconv_mode,
            )
            self.encoder.append(EncoderLayer(inputs, width, plan))
            self.decoder.insert(0, DecoderLayer(width, outputs, plan, last=index == 0))
            inputs = outputs = width
            width = int(growth * width)
        self.lstm = BLSTM(inputs, lstm_layers) if lstm_layers else None
        if rescale:
            rescale_convolutions(self, rescale)

    @property
    def max_segment(self) -> float:
        """Seconds of the longest input: any length goes."""
        return math.inf

    def valid_length(self, length: int) -> int:
        """The shortest length of at least ``length`` samples that every strided convolution divides
        without rest."""
        rate = 2 if self.upsample else 1
        steps = length * rate
        for _ in range(self.depth):
            steps = max(1, math.ceil((steps - self.kernel_size) / self.stride) + 1)
        for _ in range(self.depth):
            steps = (steps - 1) * self.stride + self.kernel_size
        return math.ceil(steps / rate)

    def forward(self, mixture: Tensor) -> Tensor:
        length = mixture.shape[-1]
        mean, std = self._statistics(mixture)
        x = (mixture - mean) / (1e-5 + std) if self.normalize else mixture
        padding = self.valid_length(length) - length
        x = F.pad(x, (padding // 2, padding - padding // 2))
        x = self.upsample(x) if self.upsample else x

        dtype = working(self, x)
        with without_autocast(x):
            x = self.network(channels_last(x[:, :, None].to(dtype)))
        x = x[:, :, 0].to(mixture.dtype)

        x = self.downsample(x) if self.downsample else x
        x = x * std + mean if self.normalize else x
        return center_trim(x, length).reshape(
            x.shape[0], len(self.sources), self.audio_channels, length
        )

    def network(self, x: Tensor) -> Tensor:
        """The U-Net, ``(B, C, 1, T)`` to ``(B, S · C, 1, T)``."""
        skips = []
        for depth, encode in enumerate(self.encoder):
            x = self.layer(depth, encode, x)
            skips.append(x)
        if self.lstm:
            x = unrows(self.layer(self.depth, self.lstm, rows(x)), 1)
        for depth, decode in zip(reversed(range(self.depth)), self.decoder, strict=True):
            x = self.layer(depth, decode, x, skips.pop())
        return x

    @staticmethod
    def _statistics(mixture: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each mono mixture: ``(B, 1, 1)`` each."""
        mono = mixture.mean(dim=1, keepdim=True)
        unbiased = min(1, mono.shape[-1] - 1)  # a single sample has deviation 0, not NaN
        return mono.mean(dim=-1, keepdim=True), mono.std(dim=-1, keepdim=True, correction=unbiased)
