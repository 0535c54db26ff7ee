"""Encoder and decoder layers of one branch of a hybrid U-Net, over frequency or over time.

A frequency layer convolves ``(B, H, F, N)`` along F, a time layer ``(B, H, 1, T)`` along T; both
are the same figure:

    encoder: convolution (stride) ─ norm ─ GELU ─ DConv ─ rewrite ─ norm ─ GLU
    decoder: + skip ─ rewrite ─ norm ─ GLU ─ DConv ─ transposed convolution (stride) ─ norm ─ GELU

Convolutions are padded by a quarter of their kernel, so that a layer's output is exactly 1 / stride
as long, and the branches stay aligned ("Hybrid Spectrogram and Waveform Source Separation",
Défossez, 2021, section 4.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demucs_lightning.models.dconv import DConv
from demucs_lightning.models.layout import (
    Conv1d,
    Conv2d,
    ConvTranspose1d,
    ConvTranspose2d,
    HalvesConv1d,
    HalvesConv2d,
    cut,
    glu,
)
from demucs_lightning.models.norms import GroupNorm
from demucs_lightning.models.precision import cast


@dataclass(frozen=True)
class LayerPlan:
    """What the two layers at one depth of one branch have in common.

    ``empty`` layers are only their strided convolution: they join the time branch to the frequency
    branch.
    """

    freq: bool
    kernel_size: int
    stride: int
    padding: int
    norm_groups: int  # 0: no norm
    rewrite: bool
    dconv: dict[str, Any]  # arguments of DConv
    dconv_mode: int  # 1: in the encoder, 2: in the decoder, 3: in both
    empty: bool = False

    def __post_init__(self) -> None:
        if self.dconv_mode not in range(4):
            raise ValueError(f"dconv_mode is {self.dconv_mode}: it must be 0, 1, 2 or 3")

    def norm(self, width: int) -> nn.Module:
        return GroupNorm(self.norm_groups, width) if self.norm_groups else nn.Identity()

    def residual(self, width: int, mode: int) -> DConv | None:
        return DConv(width, **self.dconv) if self.dconv_mode & mode else None

    def down(self, inputs: int, outputs: int) -> nn.Module:
        if self.freq:
            return Conv2d(
                inputs, outputs, (self.kernel_size, 1), (self.stride, 1), (self.padding, 0)
            )
        return Conv1d(inputs, outputs, self.kernel_size, self.stride, self.padding)

    def up(self, inputs: int, outputs: int) -> nn.Module:
        """Unpadded: the decoder trims, because it alone knows the length to return to."""
        if self.freq:
            return ConvTranspose2d(inputs, outputs, (self.kernel_size, 1), (self.stride, 1))
        return ConvTranspose1d(inputs, outputs, self.kernel_size, self.stride)

    def rewriting(self, width: int, context: int, *, context_freq: bool = True) -> nn.Module | None:
        """Doubles ``width`` for a GLU; sees ``context`` steps on either side, of both axes or of
        time only."""
        if not self.rewrite:
            return None
        if not self.freq:
            conv1d = Conv1d if self.norm_groups else HalvesConv1d
            return conv1d(width, 2 * width, 2 * context + 1, padding=context)
        over_freq = context if context_freq else 0
        conv2d = Conv2d if self.norm_groups else HalvesConv2d
        return conv2d(
            width, 2 * width, (2 * over_freq + 1, 2 * context + 1), padding=(over_freq, context)
        )


class EncoderLayer(nn.Module):
    """``(B, inputs, F, N)`` to ``(B, outputs, F / stride, N)``, or ``(B, inputs, 1, T)`` to ``(B,
    outputs, 1, ⌈T / stride⌉)``."""

    def __init__(self, inputs: int, outputs: int, plan: LayerPlan, *, context: int = 0) -> None:
        super().__init__()
        self.plan = plan
        self.conv = plan.down(inputs, outputs)
        if plan.empty:
            return
        self.norm1 = plan.norm(outputs)
        self.rewrite = plan.rewriting(outputs, context)
        self.norm2 = plan.norm(2 * outputs) if plan.rewrite else None
        self.dconv = plan.residual(outputs, 1)

    def forward(self, x: Tensor, inject: Tensor | None = None) -> Tensor:
        """``inject (B, outputs, 1, T)``, from the time branch, joins after the strided
        convolution."""
        if not self.plan.freq:
            rest = -x.shape[-1] % self.plan.stride
            x = F.pad(x, (0, rest)) if rest else x
        x = self.conv(x)
        if self.plan.empty:
            return x
        x = F.gelu(self.norm1(x if inject is None else x + inject))
        x = x if self.dconv is None else self.dconv(x)
        if self.rewrite is None or self.norm2 is None:
            return x
        return glu(self.norm2(self.rewrite(x)))


class DecoderLayer(nn.Module):
    """The way back of an ``EncoderLayer``, returning to ``length`` steps of time.

    ``forward`` also returns what enters the transposed convolution, from which the time branch
    starts where the two branches part. The ``last`` layer ends without GELU.
    """

    def __init__(  # noqa: PLR0913
        self,
        inputs: int,
        outputs: int,
        plan: LayerPlan,
        *,
        context: int = 1,
        context_freq: bool = True,
        last: bool = False,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.last = last
        self.conv_tr = plan.up(inputs, outputs)
        self.norm2 = plan.norm(outputs)
        if plan.empty:
            return
        self.rewrite = plan.rewriting(inputs, context, context_freq=context_freq)
        self.norm1 = plan.norm(2 * inputs) if plan.rewrite else None
        self.dconv = plan.residual(inputs, 2)

    def forward(self, x: Tensor, skip: Tensor | None, length: int) -> tuple[Tensor, Tensor]:
        y = x if skip is None else self._refine(x + skip)
        z = self.norm2(self.conv_tr(y))
        pad = self.plan.padding
        if not self.plan.freq:
            z = cut(z, 3, pad, min(pad + length, z.shape[3]))
        elif pad:
            z = cut(z, 2, pad, z.shape[2] - pad)
        return (z if self.last else F.gelu(z)), y

    def _refine(self, x: Tensor) -> Tensor:
        if self.rewrite is not None and self.norm1 is not None:
            x = glu(self.norm1(self.rewrite(x)))
        return x if self.dconv is None else self.dconv(x)


class MultiBandEncoder(nn.Module):
    """An encoder layer with weights of its own for every frequency band, bands cut at ``ratios`` of
    the axis.

    Neighbours see each other's edge, so that with equal weights this equals one layer over all
    frequencies.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        plan: LayerPlan,
        *,
        ratios: Sequence[float],
        context: int = 0,
    ) -> None:
        super().__init__()
        self.ratios = [*ratios, 1.0]
        self.plan = plan
        unpadded = replace(plan, padding=0)
        self.layers = nn.ModuleList(
            EncoderLayer(inputs, outputs, unpadded, context=context) for _ in self.ratios
        )

    def forward(self, x: Tensor, inject: Tensor | None = None) -> Tensor:
        assert inject is None, "bands are split in the outer layers only, before the branches join"
        kernel, stride, pad = self.plan.kernel_size, self.plan.stride, self.plan.padding
        bands, start = [], 0
        for ratio, layer in zip(self.ratios, self.layers, strict=True):
            before = pad if start == 0 else 0
            if ratio == 1:
                limit, after = x.shape[2], pad
            else:
                rows = round(int(x.shape[2]) * ratio) - start + before
                limit, after = (
                    start - before + (round((rows - kernel) / stride + 1) - 1) * stride + kernel,
                    0,
                )
            bands.append(layer(F.pad(x[:, :, start:limit], (0, 0, before, after))))
            start = limit - kernel + stride
        return torch.cat(bands, dim=2)


class MultiBandDecoder(nn.Module):
    """A decoder layer with weights of its own for every frequency band: the way back of
    ``MultiBandEncoder``.

    The transposed convolutions of neighbouring bands overlap by one stride, where they add up with
    a single bias.
    """

    layers: Any  # a ModuleList of DecoderLayer

    def __init__(  # noqa: PLR0913
        self,
        inputs: int,
        outputs: int,
        plan: LayerPlan,
        *,
        ratios: Sequence[float],
        context: int = 1,
        last: bool = False,
    ) -> None:
        super().__init__()
        self.ratios = [*ratios, 1.0]
        self.plan = plan
        self.last = last
        unpadded = replace(plan, padding=0)
        self.layers = nn.ModuleList(
            DecoderLayer(inputs, outputs, unpadded, context=context, context_freq=False, last=True)
            for _ in self.ratios
        )

    def forward(self, x: Tensor, skip: Tensor, length: int) -> tuple[Tensor, None]:
        stride = self.plan.stride
        parts: list[Tensor] = []
        seam, start = None, 0
        for ratio, layer in zip(self.ratios, self.layers, strict=True):
            limit = x.shape[2] if ratio == 1 else round(int(x.shape[2]) * ratio)
            band, _ = layer(x[:, :, start:limit], skip[:, :, start:limit], length)
            if seam is not None:
                bias = cast(layer.conv_tr.bias, band)[:, None, None]
                parts.append(seam + band[:, :, :stride] - bias)
                band = band[:, :, stride:]
            parts.append(band[:, :, :-stride])
            seam, start = band[:, :, -stride:], limit
        assert seam is not None
        whole = torch.cat([*parts, seam], dim=2)[:, :, stride // 2 : -stride // 2]
        return (whole if self.last else F.gelu(whole)), None


def banded_encoder(
    inputs: int, outputs: int, plan: LayerPlan, ratios: Sequence[float] | None, *, context: int
) -> nn.Module:
    """One encoder layer, or one for each band where ``ratios`` cut the frequency axis."""
    if ratios:
        return MultiBandEncoder(inputs, outputs, plan, ratios=ratios, context=context)
    return EncoderLayer(inputs, outputs, plan, context=context)


def banded_decoder(  # noqa: PLR0913
    inputs: int,
    outputs: int,
    plan: LayerPlan,
    ratios: Sequence[float] | None,
    *,
    context: int,
    last: bool,
) -> nn.Module:
    """One decoder layer, or one for each band where ``ratios`` cut the frequency axis."""
    if ratios:
        return MultiBandDecoder(inputs, outputs, plan, ratios=ratios, context=context, last=last)
    return DecoderLayer(inputs, outputs, plan, context=context, last=last)
