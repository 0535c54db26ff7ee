"""Hybrid Transformer Demucs (v4): the two-branch U-Net without its innermost layers, and a
transformer across both branches in their place ("Hybrid Transformers for Music Source Separation",
Rouard, Massa and Défossez, 2022, arXiv:2211.08553).

    encoder   2048 bins → 512 → 128 → 32 → 8 ── [wider] ─┐             ┌─ [back] ── decoder
                                                         ├ transformer ┤
    tencoder  T → T/4 → T/16 → T/64 → T/256 ─── [wider] ─┘             └─ [back] ── tdecoder

The branches never join in a layer: they meet in the transformer alone. It has learnt to attend over
one length, so evaluation keeps to the training segment.
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import fields
from fractions import Fraction
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from demucs_lightning.models.hybrid import HybridUNet
from demucs_lightning.models.layout import Conv1d, channels_last
from demucs_lightning.models.transformer import CrossTransformerEncoder, TransformerOptions

# Arguments of HybridUNet that are none of HTDemucs': always two branches, and plain DConv.
FIXED = {"hybrid": True, "hybrid_old": False, "dconv_attn": math.inf, "dconv_lstm": math.inf}
SHARED = [name for name in inspect.signature(HybridUNet).parameters if name not in FIXED]


class HTDemucs(HybridUNet):
    """``(B, C, T)`` mixtures to ``(B, S, C, T)`` estimates.

    Constructor arguments, parameter names and shapes are those of ``demucs.htdemucs.HTDemucs`` 4.1.
    Those of the U-Net are described in ``HybridUNet``, those of the transformer, which begin with
    ``t_``, in ``TransformerOptions``.

    Args:
        bottom_channels: width of the transformer, where it is not that of the branches.
        t_layers: 0 for no transformer; the decoders then start where the encoders ended.
        t_sparse_self_attn, t_sparse_cross_attn, t_auto_sparsity: the sparse attention that was
            never released: False.
        t_mask_type, t_mask_random_seed, t_sparse_attn_window, t_global_window, t_sparsity: of no
            effect without it; kept since released files carry them.
        segment: of training, in seconds, a Fraction or a float.
        use_train_segment: evaluation runs at the length of that segment: shorter inputs are padded
            with zeros, longer ones refused. Else, and in training, any length runs as it is.
        memory: what training keeps for its backward pass, see ``recompute``.

    Raises:
        ValueError: where the arguments do not fit together; in eval mode, for an input that is
            longer than the training segment.
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
        depth: int = 4,
        rewrite: bool = True,
        multi_freqs: Sequence[float] | None = None,
        multi_freqs_depth: int = 3,
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
        dconv_comp: float = 8,
        dconv_init: float = 1e-3,
        bottom_channels: int = 0,
        t_layers: int = 5,
        t_emb: str = "sin",
        t_hidden_scale: float = 4.0,
        t_heads: int = 8,
        t_dropout: float = 0.0,
        t_max_positions: int = 10000,
        t_norm_in: bool = True,
        t_norm_in_group: int = False,
        t_group_norm: int = False,
        t_norm_first: bool = True,
        t_norm_out: bool = True,
        t_max_period: float = 10000.0,
        t_weight_decay: float = 0.0,
        t_lr: float | None = None,
        t_layer_scale: bool = True,
        t_gelu: bool = True,
        t_weight_pos_embed: float = 1.0,
        t_sin_random_shift: int = 0,
        t_cape_mean_normalize: bool = True,
        t_cape_augment: bool = True,
        t_cape_glob_loc_scale: Sequence[float] = (5000.0, 1.0, 1.4),
        t_sparse_self_attn: bool = False,
        t_sparse_cross_attn: bool = False,
        t_mask_type: str = "diag",
        t_mask_random_seed: int = 42,
        t_sparse_attn_window: int = 500,
        t_global_window: int = 100,
        t_sparsity: float = 0.95,
        t_auto_sparsity: bool = False,
        t_cross_first: bool = False,
        rescale: float = 0.1,
        samplerate: int = 44100,
        segment: float | Fraction = 10,
        use_train_segment: bool = True,
        memory: str = "fast",
    ) -> None:
        given = locals()  # by name: fifty arguments handed on one by one would hide a missing one
        options = TransformerOptions(
            **{field.name: given[f"t_{field.name}"] for field in fields(TransformerOptions)}
        )
        super().__init__(**{name: given[name] for name in SHARED}, **FIXED)
        self.use_train_segment = use_train_segment
        width, width_time = self.bottom_widths
        if t_layers and width != width_time:
            raise ValueError(
                f"channels_time={channels_time} makes branches of widths {width} and {width_time} "
                "at the transformer, which needs one: leave it out, or set t_layers=0"
            )
        if bottom_channels:
            self.channel_upsampler = Conv1d(width, bottom_channels, 1)
            self.channel_downsampler = Conv1d(bottom_channels, width, 1)
            self.channel_upsampler_t = Conv1d(width, bottom_channels, 1)
            self.channel_downsampler_t = Conv1d(bottom_channels, width, 1)
            if not t_layers:  # there as in the reference, but of no use
                for name in ("channel_upsampler", "channel_downsampler"):
                    for branch in ("", "_t"):
                        self.get_submodule(name + branch).requires_grad_(False)
        self.bottom_channels = bottom_channels
        self.crosstransformer = (
            CrossTransformerEncoder(bottom_channels or width, options) if t_layers else None
        )

    def check_geometry(self) -> None:
        if self.joins:
            raise ValueError(
                f"depth={len(self.encoder)} leaves one frequency bin, where the branches would "
                "join: fewer layers or a larger nfft are needed"
            )

    @property
    def training_length(self) -> int:
        """Samples of the training segment; demucs 4 loses one where a float is a little low."""
        samples = self.segment * self.samplerate
        whole = round(samples)
        return whole if math.isclose(samples, whole, rel_tol=1e-9) else int(samples)

    @property
    def max_segment(self) -> float | Fraction:
        """Seconds of the longest input in eval mode."""
        return self.segment if self.use_train_segment else math.inf

    def valid_length(self, length: int) -> int:
        """The training segment in samples, or ``length`` without ``use_train_segment``.

        Raises ValueError where ``length`` is longer than that segment.
        """
        if not self.use_train_segment:
            return length
        if length > self.training_length:
            raise ValueError(
                f"an input of {length} samples is longer than the {self.training_length} of the "
                "training segment: separate it in shorter chunks, or set use_train_segment=False"
            )
        return self.training_length

    def forward(self, mixture: Tensor) -> Tensor:
        if self.training:
            return super().forward(mixture)
        length = mixture.shape[-1]
        lack = self.valid_length(length) - length
        return super().forward(F.pad(mixture, (0, lack)))[..., :length]

    def bottleneck(self, x_freq: Tensor, x_time: Tensor) -> tuple[Tensor, Tensor]:
        if self.crosstransformer is None:
            return x_freq, x_time
        if self.bottom_channels:
            x_freq, x_time = self.channel_upsampler(x_freq), self.channel_upsampler_t(x_time)
        x_freq, tokens = self.crosstransformer(x_freq, x_time[:, :, 0], memory=self.memory)
        x_freq, x_time = channels_last(x_freq), channels_last(tokens[:, :, None])
        if self.bottom_channels:
            x_freq, x_time = self.channel_downsampler(x_freq), self.channel_downsampler_t(x_time)
        return x_freq, x_time

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters as an optimizer takes them, the transformer's in a group of that name,
        with ``t_weight_decay``, and with ``t_lr`` where there is one."""
        if self.crosstransformer is None:
            return [{"params": list(self.parameters())}]
        inside = list(self.crosstransformer.parameters())
        ids = {id(parameter) for parameter in inside}
        options = self.crosstransformer.options
        lr = {} if options.lr is None else {"lr": options.lr}
        return [
            {"params": [p for p in self.parameters() if id(p) not in ids], "name": "network"},
            {
                "params": inside,
                "name": "transformer",
                "weight_decay": options.weight_decay,
                **lr,
            },
        ]
