"""The transformer across domains at the bottom of HTDemucs ("Hybrid Transformers for Music Source
Separation", Rouard, Massa and Défossez, 2022, arXiv:2211.08553, section 3).

    spectrogram ─ norm ─ + positions ─ self ─┬─ cross ─ self ─┬─ cross ─ self ─ …
                                             ╳                ╳
    waveform ──── norm ─ + positions ─ self ─┴─ cross ─ self ─┴─ cross ─ self ─ …

Each branch is a sequence of tokens of width D, with one layer of its own at every depth. In a self
layer a branch attends to itself, in a cross layer to what the other branch was before that layer.
Both kinds of layer are an attention and a feed-forward network, each on a residual path:

    x ─┬─ norm ─ attention ─ scale ─ + ─┬─ norm ─ linear ─ GELU ─ linear ─ scale ─ + ─ norm out ─
       └─────────────────────────────┘  └──────────────────────────────────────────┘

Attention is ``scaled_dot_product_attention``: the matrix of weights never exists as a whole.
Parameter names and shapes are those of ``demucs.transformer.CrossTransformerEncoder`` 4.1. What is
random in training (dropout, shifts of the positions) is drawn by torch; in eval mode nothing is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demucs_lightning.models.layers import LayerScale, ScaledEmbedding
from demucs_lightning.models.norms import row_norm
from demucs_lightning.models.positions import count, grid_positions, moved, sinusoids
from demucs_lightning.models.precision import cast, linear
from demucs_lightning.models.recompute import recomputed

LAYER_SCALE = 1e-4  # initial scale of a residual path
EMBEDDINGS = ("sin", "cape", "scaled")


@dataclass(frozen=True, kw_only=True)
class TransformerOptions:
    """The arguments ``t_*`` of HTDemucs that have an effect, named without ``t_``.

    Attributes:
        layers: of each branch.
        emb: positions of the waveform's tokens: "sin", sinusoids; "cape", sinusoids of positions
            that are moved and scaled at random in training (Likhomanenko et al., 2021,
            arXiv:2106.03143); "scaled", learnt, for ``max_positions`` tokens.
        hidden_scale: width of the feed-forward network, in D.
        heads: of an attention; they divide D.
        dropout: probability, in training.
        norm_in: LayerNorm before the positions are added; norm_in_group: else GroupNorm over all
            tokens with so many groups, if any.
        group_norm: groups of a GroupNorm over all tokens that stands for each LayerNorm of the
            layers, 0 for LayerNorm.
        norm_first: norm on the residual path, else after it.
        norm_out: GroupNorm of one group at the end of every layer, with ``norm_first`` only.
        max_period: longest period of the sinusoids, in tokens / 2π.
        weight_decay, lr: for the optimizer; None: as the rest of the model.
        layer_scale: a learnt gain on each residual path, small at first.
        gelu: else ReLU.
        weight_pos_embed: what positions are multiplied by.
        sin_random_shift: in training, "sin" positions start at a random one up to this.
        cape_mean_normalize: "cape" positions are centred on 0.
        cape_augment: whether "cape" moves positions at all in training; cape_glob_loc_scale: by
            how much at most, all tokens of an example alike, each token on its own, and as factor.
        cross_first: cross layers come at even depths, else at odd ones.

    Raises ValueError, with the argument's name, for one that is out of its range.
    """

    layers: int
    emb: str
    hidden_scale: float
    heads: int
    dropout: float
    max_positions: int
    norm_in: bool
    norm_in_group: int
    group_norm: int
    norm_first: bool
    norm_out: bool
    max_period: float
    weight_decay: float
    lr: float | None
    layer_scale: bool
    gelu: bool
    weight_pos_embed: float
    sin_random_shift: int
    cape_mean_normalize: bool
    cape_augment: bool
    cape_glob_loc_scale: Sequence[float]
    sparse_self_attn: bool
    sparse_cross_attn: bool
    auto_sparsity: bool
    cross_first: bool

    def __post_init__(self) -> None:
        for name in ("sparse_self_attn", "sparse_cross_attn", "auto_sparsity"):
            _require(
                not getattr(self, name),
                f"t_{name}=True needs kernels for sparse attention that were never released: "
                f"set t_{name}=False",
            )
        _require(self.layers >= 0, f"t_layers is {self.layers}: it must be 0 or more")
        _require(
            self.emb in EMBEDDINGS, f"t_emb is {self.emb!r}: it must be {', '.join(EMBEDDINGS)}"
        )
        _require(0 <= self.dropout < 1, f"t_dropout is {self.dropout}: it must be from 0 to 1")
        _require(
            self.sin_random_shift >= 0,
            f"t_sin_random_shift is {self.sin_random_shift}: it must be 0 or more tokens",
        )
        scale = self.cape_glob_loc_scale
        _require(
            len(scale) == 3 and min(scale[:2]) >= 0 and scale[2] >= 1,
            f"t_cape_glob_loc_scale is {list(scale)}: it must be two shifts of 0 or more and a "
            "factor of 1 or more",
        )
        _require(
            self.weight_decay >= 0, f"t_weight_decay is {self.weight_decay}: it must be 0 or more"
        )
        proper = self.lr is None or (isinstance(self.lr, int | float) and self.lr > 0)
        _require(proper, f"t_lr is {self.lr}: it must be above 0")

    def norm(self, dim: int) -> nn.Module:
        """A norm inside a layer."""
        return TokenGroupNorm(int(self.group_norm), dim) if self.group_norm else LayerNorm(dim)

    def entry_norm(self, dim: int) -> nn.Module:
        if self.norm_in:
            return LayerNorm(dim)
        groups = int(self.norm_in_group)
        return TokenGroupNorm(groups, dim) if groups else nn.Identity()

    def exit_norm(self, dim: int) -> nn.Module:
        ends = self.norm_first and self.norm_out
        return TokenGroupNorm(1, dim) if ends else nn.Identity()

    def gain(self, dim: int) -> nn.Module:
        return LayerScale(dim, LAYER_SCALE) if self.layer_scale else nn.Identity()


class LayerNorm(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        weight, bias = cast(self.weight, input), cast(self.bias, input)
        return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class TokenGroupNorm(nn.GroupNorm):
    """GroupNorm of ``(B, T, D)``, statistics over all tokens of an example."""

    def forward(self, input: Tensor) -> Tensor:
        return row_norm(self, input)


class Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class Attention(nn.Module):
    """Multi-head attention from ``x (B, T, D)`` to ``other (B, T', D)``, or of ``x`` to itself.

    Parameters are those of ``nn.MultiheadAttention``: queries, keys and values in one projection.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = Linear(dim, dim)
        nn.init.zeros_(self.out_proj.bias)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def project(self, x: Tensor, other: Tensor | None = None) -> tuple[Tensor, ...]:
        """Queries of ``x``, keys and values of ``other``: ``(B, T, D)`` each."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if other is None:
            return linear(x, weight, bias).chunk(3, dim=2)
        dim = x.shape[2]
        queries = linear(x, weight[:dim], bias[:dim])
        return queries, *linear(other, weight[dim:], bias[dim:]).chunk(2, dim=2)

    def attend(self, *projected: Tensor) -> Tensor:
        """What all heads find, ``(B, T, D)``, for ``out_proj``."""
        queries, keys, values = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in projected
        )
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout)
        return attended.transpose(1, 2).flatten(2)


class TransformerLayer(nn.Module):
    """A branch ``x (B, T, D)`` and the ``other (B, T', D)`` to what ``x`` becomes.

    What the layers of both kinds share: ``attention`` is the name of the one they have, and
    ``norms`` their number of norms.
    """

    norm1: nn.Module
    norm2: nn.Module

    def __init__(
        self, dim: int, options: TransformerOptions, *, attention: str, norms: int
    ) -> None:
        super().__init__()
        hidden = int(dim * options.hidden_scale)
        self.norm_first, self.dropout = options.norm_first, options.dropout
        self.add_module(attention, Attention(dim, options.heads, options.dropout))
        self.linear1, self.linear2 = Linear(dim, hidden), Linear(hidden, dim)
        self.activation = F.gelu if options.gelu else F.relu
        for number in range(norms):
            self.add_module(f"norm{number + 1}", options.norm(dim))
        self.last_norm = f"norm{norms}"  # on the residual path of the feed-forward network
        self.norm_out = options.exit_norm(dim)
        self.gamma_1, self.gamma_2 = options.gain(dim), options.gain(dim)

    def forward(self, x: Tensor, other: Tensor, *, again: bool = False) -> Tensor:
        """``again``: backward computes all but the attention a second time, see ``recompute``."""
        attended = self.attend(x, other)
        return recomputed(self, self.finish, x, attended) if again else self.finish(x, attended)

    def attend(self, x: Tensor, other: Tensor) -> Tensor:
        return self.attention.attend(*recomputed(self, self.project, x, other))

    @property
    def attention(self) -> Attention:
        raise NotImplementedError

    def project(self, x: Tensor, other: Tensor) -> tuple[Tensor, ...]:
        """What the attention looks at: queries, keys and values."""
        raise NotImplementedError

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """All of a layer but for the attention, which has found ``attended`` from ``x``."""
        x = self.add(x, self.gamma_1, self.attention.out_proj(attended))
        if not self.norm_first:
            x = self.norm1(x)
            return self.norm2(self.add(x, self.gamma_2, self.feed_forward(self.linear1(x))))
        y = self.feed_forward(recomputed(self, self._entered, x))
        return recomputed(self, self._left, x, y)

    def _entered(self, x: Tensor) -> Tensor:
        return self.linear1(getattr(self, self.last_norm)(x))

    def _left(self, x: Tensor, y: Tensor) -> Tensor:
        return self.norm_out(self.add(x, self.gamma_2, y))

    def feed_forward(self, x: Tensor) -> Tensor:
        return recomputed(self, lambda x: self.linear2(self._dropped(self.activation(x))), x)

    def add(self, x: Tensor, gain: nn.Module, y: Tensor) -> Tensor:
        """``x`` and what its residual path ``y`` adds to it."""
        y = self._dropped(y)
        return torch.addcmul(x, cast(gain.scale, x), y) if isinstance(gain, LayerScale) else x + y

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class SelfLayer(TransformerLayer):
    """A branch attends to itself; the other branch is not looked at."""

    self_attn: Attention

    def __init__(self, dim: int, options: TransformerOptions) -> None:
        super().__init__(dim, options, attention="self_attn", norms=2)

    @property
    def attention(self) -> Attention:
        return self.self_attn

    def project(self, x: Tensor, other: Tensor) -> tuple[Tensor, ...]:
        return self.self_attn.project(self.norm1(x) if self.norm_first else x)


class CrossLayer(TransformerLayer):
    """A branch attends to the other.

    Without ``norm_first`` the third norm has nothing to do; it is there as in released files, and
    doesn't learn.
    """

    cross_attn: Attention

    def __init__(self, dim: int, options: TransformerOptions) -> None:
        super().__init__(dim, options, attention="cross_attn", norms=3)
        if not options.norm_first:
            getattr(self, self.last_norm).requires_grad_(False)

    @property
    def attention(self) -> Attention:
        return self.cross_attn

    def project(self, x: Tensor, other: Tensor) -> tuple[Tensor, ...]:
        if self.norm_first:
            x, other = self.norm1(x), self.norm2(other)
        return self.cross_attn.project(x, other)


class CrossTransformerEncoder(nn.Module):
    """The spectrogram's ``(B, D, F, N)`` and the waveform's ``(B, D, T)`` to the same shapes.

    Raises ValueError where ``dim`` does not fit the options.
    """

    def __init__(self, dim: int, options: TransformerOptions) -> None:
        super().__init__()
        for divisor, name in ((options.heads, "t_heads"), (4, "what positions on two axes take")):
            _require(
                dim % divisor == 0,
                f"the transformer is {dim} wide: this must be a multiple of {name} ({divisor})",
            )
        self.options = options
        if options.emb == "scaled":
            self.position_embeddings = ScaledEmbedding(options.max_positions, dim, scale=3.0)
            with torch.no_grad():
                self.position_embeddings.embedding.weight.mul_(0.2)
        self.norm_in, self.norm_in_t = options.entry_norm(dim), options.entry_norm(dim)
        self.layers, self.layers_t = nn.ModuleList(), nn.ModuleList()
        for depth in range(options.layers):
            crosses = (depth % 2 == 1) != options.cross_first
            for branch in (self.layers, self.layers_t):
                branch.append((CrossLayer if crosses else SelfLayer)(dim, options))

    def forward(
        self, x_freq: Tensor, x_time: Tensor, *, memory: str = "fast"
    ) -> tuple[Tensor, Tensor]:
        """``memory``: what training keeps for its backward pass, see ``recompute``."""
        bins = x_freq.shape[2]
        positions = grid_positions(x_freq, self.options.max_period).flatten(0, 1)
        x_freq = self._placed(self.norm_in(x_freq.flatten(2).transpose(1, 2)), positions)
        positions = self._time_positions(x_time)
        x_time = self._placed(self.norm_in_t(x_time.transpose(1, 2)), positions)

        for layer, layer_t in zip(self.layers, self.layers_t, strict=True):
            x_freq, x_time = (
                self._passed(memory, layer, x_freq, x_time),
                self._passed(memory, layer_t, x_time, x_freq),
            )

        return x_freq.transpose(1, 2).unflatten(2, (bins, -1)), x_time.transpose(1, 2)

    @staticmethod
    def _passed(memory: str, layer: Any, x: Tensor, other: Tensor) -> Tensor:
        if memory == "low":
            return recomputed(layer, layer, x, other)
        return layer(x, other, again=memory == "balanced")

    def _placed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + (self.options.weight_pos_embed * positions).to(x.dtype)

    def _time_positions(self, x: Tensor) -> Tensor:
        """Positions of the tokens of ``x (B, D, T)``: ``(T, D)``, or ``(B, T, D)`` with cape."""
        options, (batch, dim, length) = self.options, x.shape
        if options.emb == "scaled":
            _require(
                length <= options.max_positions,
                f"the input has {length} positions at the transformer: t_max_positions is "
                f"{options.max_positions}, and must be as many",
            )
            return self.position_embeddings(torch.arange(length, device=x.device))
        steps = count(length, x)
        if options.emb == "cape":
            steps = steps.expand(batch, length)
            if options.cape_mean_normalize:
                steps = steps - steps.mean(dim=1, keepdim=True)
            if self.training and options.cape_augment:
                steps = moved(steps, *options.cape_glob_loc_scale)
        elif self.training and options.sin_random_shift:  # demucs 4 does so in eval mode, too
            steps = steps + torch.randint(options.sin_random_shift + 1, (1,), device=x.device)
        return sinusoids(steps, dim, options.max_period)


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)
