"""The two-branch U-Net that every hybrid Demucs is made of, between the STFT and its inverse.

    mixture ─ STFT ─ encoder  ─┐              ┌─ decoder  ─ inverse STFT ─┐
       │                       ├─ bottleneck ─┤                           + ─ estimates
       └──────────── tencoder ─┘              └─ tdecoder ────────────────┘

The frequency branch convolves over frequency until one bin is left. There the time branch, whose
strides have brought it to the same frame rate, joins it, and layers over time follow; the decoder
mirrors this. A model is this network and a ``bottleneck``. The part from channels to channels,
``network``, is real-valued and can be exported.

"Hybrid Spectrogram and Waveform Source Separation" (Défossez, 2021, arXiv:2111.03600). Constructor
arguments, parameter names and shapes are those of ``demucs.hdemucs.HDemucs`` 4.1.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from demucs_lightning.models.branch import (
    DecoderLayer,
    EncoderLayer,
    LayerPlan,
    banded_decoder,
    banded_encoder,
)
from demucs_lightning.models.layers import ScaledEmbedding, rescale_convolutions
from demucs_lightning.models.layout import channels_last
from demucs_lightning.models.precision import cast, without_autocast, working
from demucs_lightning.models.recompute import Recomputing
from demucs_lightning.models.stft import Spectral

Skip = tuple[Tensor | None, int]


def plan_layers(
    bins: int,
    depth: int,
    kernel_size: int,
    stride: int,
    time_stride: int,
    shared: Callable[[int], dict[str, Any]],
) -> Iterator[tuple[LayerPlan, LayerPlan]]:
    """The plans of the frequency and of the time branch, from the outermost layer inwards.

    Over frequency until one of the ``bins`` is left; the layer that gets there takes all remaining
    bins in one kernel, and its partner in the time branch is empty. Layers after it are over time,
    in the first branch alone.
    """
    for index in range(depth):
        joins, common = 1 < bins <= kernel_size, shared(index)
        time = LayerPlan(False, kernel_size, stride, kernel_size // 4, empty=joins, **common)
        if joins:
            main = LayerPlan(True, bins, stride, 0, **common)
        elif bins > 1:
            main = LayerPlan(True, kernel_size, stride, kernel_size // 4, **common)
        else:
            main = LayerPlan(False, 2 * time_stride, time_stride, time_stride // 2, **common)
        yield main, time
        if bins > 1 and not joins and bins % stride:
            raise ValueError(
                f"nfft / 2 must be divisible by the stride at every layer over frequency, but "
                f"{bins} bins are left that {stride} does not divide"
            )
        bins = 1 if bins <= kernel_size else bins // stride


class HybridUNet(Recomputing):
    """``(B, C, T)`` mixtures to ``(B, S, C, T)`` estimates; subclasses give the ``bottleneck``.

    Args:
        sources: names of the stems, in the order of the output.
        audio_channels: channels of the audio, 1 or 2.
        channels, channels_time, growth: width of the first layer, of the first time layer if
            another, and the factor from layer to layer.
        nfft: bins of the STFT; its hop is a quarter.
        wiener_iters, end_iters: without ``cac``, how the mixture's phase is taken in evaluation and
            in training: 0 as a Wiener filter starts, below 0 by division. Iterated filtering (above
            0) is not supported.
        wiener_residual: of no effect without iterations; kept since released files carry it.
        cac: real and imaginary parts as channels, else magnitudes.
        depth: layers of the encoder, and of the decoder.
        rewrite: a gated convolution at the end of an encoder and the start of a decoder layer.
        hybrid: with a time branch. hybrid_old: pad the STFT with zeros, as the first released
            models.
        multi_freqs, multi_freqs_depth: cut the frequency axis at these ratios in the outermost so
            many layers.
        freq_emb, emb_scale, emb_smooth: weight of the frequency embedding (0: none), its learning
            rate factor, and whether it starts smooth.
        kernel_size, stride, time_stride: of the strided convolutions, and the stride of layers
            after the join.
        context, context_enc: steps on either side that a rewrite sees in the decoder, in the
            encoder.
        norm_starts, norm_groups: GroupNorm from this layer on, with so many groups.
        dconv_mode: DConv in the encoder (1), the decoder (2), both (3) or nowhere (0).
        dconv_depth, dconv_comp, dconv_init: branches of a DConv, their compression, their initial
            LayerScale.
        dconv_attn, dconv_lstm: first layer whose DConv has local attention, an LSTM.
        rescale: reference deviation of the initial weights, 0 to leave them.
        samplerate: of the audio, in Hz. segment: length to separate at, in seconds. Both describe
            the model.
        memory: what training keeps for its backward pass, see ``recompute``.

    Raises:
        ValueError: where the arguments do not fit together.
    """

    def __init__(  # noqa: PLR0913
        self,
        sources: Sequence[str],
        audio_channels: int = 2,
        channels: int = 48,
        channels_time: int | None = None,
        growth: float = 2,
        nfft: int = 4096,
        wiener_iters: int = 0,
        end_iters: int = 0,
        wiener_residual: bool = False,
        cac: bool = True,
        depth: int = 6,
        rewrite: bool = True,
        hybrid: bool = True,
        hybrid_old: bool = False,
        multi_freqs: Sequence[float] | None = None,
        multi_freqs_depth: int = 2,
        freq_emb: float = 0.2,
        emb_scale: float = 10,
        emb_smooth: bool = True,
        kernel_size: int = 8,
        time_stride: int = 2,
        stride: int = 4,
        context: int = 1,
        context_enc: int = 0,
        norm_starts: int = 4,
        norm_groups: int = 4,
        dconv_mode: int = 1,
        dconv_depth: int = 2,
        dconv_comp: float = 4,
        dconv_attn: int = 4,
        dconv_lstm: int = 4,
        dconv_init: float = 1e-4,
        rescale: float = 0.1,
        samplerate: int = 44100,
        segment: float | Fraction = 40,
        memory: str = "fast",
    ) -> None:
        super().__init__(memory)
        self._check(wiener_iters, end_iters, hybrid=hybrid, hybrid_old=hybrid_old)
        if multi_freqs and norm_starts < multi_freqs_depth:
            raise ValueError(
                f"multi_freqs needs its layers without norm: norm_starts >= {multi_freqs_depth}"
            )
        self.sources = list(sources)
        self.audio_channels = audio_channels
        self.samplerate, self.segment = samplerate, segment
        self.hybrid = hybrid
        self.wiener_iters, self.end_iters = wiener_iters, end_iters
        self.spectral = Spectral(nfft, cac=cac, aligned=hybrid, zero_padded=hybrid_old)

        def shared(index: int) -> dict[str, Any]:
            extras = {"attn": index >= dconv_attn, "lstm": index >= dconv_lstm}
            return {
                "norm_groups": norm_groups if index >= norm_starts else 0,
                "rewrite": rewrite,
                "dconv": {
                    "depth": dconv_depth,
                    "compress": dconv_comp,
                    "init": dconv_init,
                    **extras,
                },
                "dconv_mode": dconv_mode,
            }

        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        if hybrid:
            self.tencoder, self.tdecoder = nn.ModuleList(), nn.ModuleList()
        self.joins, self.time_strides = False, 1  # whether the time branch joins, its stride there
        self.freq_emb, self.freq_emb_scale = None, freq_emb
        parts = 2 if cac else 1
        inputs, outputs = audio_channels * parts, audio_channels * parts * len(self.sources)
        inputs_time, outputs_time = audio_channels, audio_channels * len(self.sources)
        width, width_time = channels, channels_time or channels
        for index, (main, time) in enumerate(
            plan_layers(nfft // 2, depth, kernel_size, stride, time_stride, shared)
        ):
            if time.empty:  # the branches join
                width = width_time = max(width, width_time)
            into = {"context": context_enc}
            out_of = {"context": context, "last": index == 0}
            ratios = multi_freqs if index < multi_freqs_depth else None
            self.encoder.append(banded_encoder(inputs, width, main, ratios, **into))
            if hybrid and main.freq:
                self.tencoder.append(EncoderLayer(inputs_time, width_time, time, **into))
            self.decoder.insert(0, banded_decoder(width, outputs, main, ratios, **out_of))
            if hybrid and main.freq:
                self.tdecoder.insert(0, DecoderLayer(width_time, outputs_time, time, **out_of))
                self.joins, self.time_strides = time.empty, self.time_strides * stride
            if index == 0 and freq_emb:
                bins = 1 if main.padding == 0 else nfft // 2 // stride
                self.freq_emb = ScaledEmbedding(bins, width, scale=emb_scale, smooth=emb_smooth)
            inputs = outputs = width
            inputs_time = outputs_time = width_time
            width, width_time = int(growth * width), int(growth * width_time)

        self.bottom_widths = inputs, inputs_time
        if rescale:
            rescale_convolutions(self, rescale)
        self.check_geometry()

    def check_geometry(self) -> None:
        """Raise ValueError where the layers cannot do what the subclass needs of them."""

    @property
    def max_segment(self) -> float | Fraction:
        """Seconds of the longest input: any length goes."""
        return math.inf

    def valid_length(self, length: int) -> int:
        """``length``: the STFT and the layers pad by themselves."""
        return length

    def forward(self, mixture: Tensor) -> Tensor:
        length = mixture.shape[-1]
        spec = self.spectral.spec(mixture)
        freq, time = self.network(self.spectral.to_channels(spec), mixture)
        floored = (self.end_iters if self.training else self.wiener_iters) < 0
        spec_estimates = self.spectral.from_channels(
            freq.to(spec.real.dtype), spec, floored=floored
        )
        estimates = self.spectral.audio(spec_estimates, length)
        return estimates if time is None else estimates + time

    def network(self, x_freq: Tensor, x_time: Tensor) -> tuple[Tensor, Tensor | None]:
        """The part between the STFT and its inverse.

        From the channels of a mixture's spectrogram ``(B, K, F, N)``, where K is 2C with ``cac``
        and C without, and its waveform ``(B, C, T)``, to those of the stems: ``(B, S, K, F, N)``
        and ``(B, S, C, T)``, the latter None unless ``hybrid``. In and out are in the precision of
        the signal, what is between in that of the weights or of autocast.
        """
        x_freq, *scale_freq = standardize(x_freq)
        x_time, *scale_time = standardize(x_time[:, :, None])

        dtype = working(self, x_time)
        x_freq, x_time = (channels_last(x.to(dtype)) for x in (x_freq, x_time))
        with without_autocast(x_time):
            x_freq, x_time, skips_freq, skips_time = self.encode(x_freq, x_time)
            x_freq, x_time = self.bottleneck(x_freq, x_time)
            x_freq, x_time = self.decode(x_freq, x_time, skips_freq, skips_time)

        stems = len(self.sources)
        time = restore(x_time, stems, *scale_time)[:, :, :, 0] if self.hybrid else None
        return restore(x_freq, stems, *scale_freq), time

    def encode(
        self, x_freq: Tensor, x_time: Tensor
    ) -> tuple[Tensor, Tensor, list[Skip], list[Skip]]:
        """Down both branches, both in 4 dimensions. A skip is a layer's output and the steps of
        time that entered it."""
        skips_freq, skips_time = [], []
        for index, encode in enumerate(self.encoder):
            inject = None
            if self.hybrid and index < len(self.tencoder):
                entering = x_time.shape[-1]
                x_time = self.layer(index, self.tencoder[index], x_time)
                joins = self.joins and index == len(self.tencoder) - 1
                inject = x_time if joins else None
                skips_time.append((None if joins else x_time, entering))
            entering = x_freq.shape[-1]
            x_freq = self.layer(index, encode, x_freq, inject)
            if index == 0 and self.freq_emb is not None:
                bins = torch.arange(x_freq.shape[2], device=x_freq.device)
                embedding = self.freq_emb_scale * cast(self.freq_emb(bins), x_freq)
                x_freq = x_freq + embedding.t()[None, :, :, None]
            skips_freq.append((x_freq, entering))
        return x_freq, x_time, skips_freq, skips_time

    def bottleneck(self, x_freq: Tensor, x_time: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoders start from, given where the encoders ended: the same shapes."""
        raise NotImplementedError

    def decode(
        self, x_freq: Tensor, x_time: Tensor, skips_freq: list[Skip], skips_time: list[Skip]
    ) -> tuple[Tensor, Tensor]:
        """Up both branches, the time branch from where it parts from the frequency branch."""
        parting = len(self.decoder) - len(skips_time)
        for index, decode in enumerate(self.decoder):
            depth = len(self.decoder) - 1 - index
            x_freq, before = self.layer(depth, decode, x_freq, *skips_freq.pop())
            if self.hybrid and index >= parting:
                skip, length = skips_time.pop()
                x_time = before if skip is None else x_time
                decode_time = self.tdecoder[index - parting]
                x_time, _ = self.layer(depth, decode_time, x_time, skip, length)
        return x_freq, x_time

    @staticmethod
    def _check(wiener_iters: int, end_iters: int, *, hybrid: bool, hybrid_old: bool) -> None:
        if max(wiener_iters, end_iters) > 0:
            raise ValueError(
                "wiener_iters and end_iters above 0 are not supported: no released model uses "
                "iterative Wiener filtering, choose 0 or -1"
            )
        if hybrid and wiener_iters != end_iters:
            raise ValueError(
                f"a hybrid model needs wiener_iters ({wiener_iters}) equal to end_iters "
                f"({end_iters})"
            )
        if hybrid_old and not hybrid:
            raise ValueError("hybrid_old=True is a kind of hybrid model and needs hybrid=True")


def standardize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each example of ``x (B, ...)`` at zero mean and unit deviation; its mean and deviation."""
    axes = tuple(range(1, x.dim()))
    mean, std = x.mean(dim=axes, keepdim=True), x.std(dim=axes, keepdim=True)
    return (x - mean).div_(1e-5 + std), mean, std


def restore(x: Tensor, stems: int, mean: Tensor, std: Tensor) -> Tensor:
    """``(B, S · K, ...)`` to ``(B, S, K, ...)`` with the mixture's mean and deviation again."""
    return (x.to(std.dtype) * std).add_(mean).unflatten(1, (stems, -1))
