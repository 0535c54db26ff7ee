"""Building blocks shared by every Demucs: the residual DConv branch and what it is made of,
resampling, initialisation.

DConv maps ``(B, H, F, N)`` to the same shape, along N; what recurs or attends inside it maps
sequences ``(B, T, H)``. The names of the parameters are the reference's, so its weights load as
they are. DConv, the biased local attention and the LayerScale inside it are described in "Hybrid
Spectrogram and Waveform Source Separation" (Défossez, 2021), section 4.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demucs_lightning.models.layout import Conv1d, RowNorm, rows, unrows

BLOCK = 512  # steps that are added up one after the other


class LayerScale(nn.Module):
    """A learnt gain per channel, small at first so that a residual branch starts close to the
    identity (Touvron et al., 2021, "Going deeper with image transformers")."""

    def __init__(self, channels: int, init: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), float(init)))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale[:, None] * x


class BLSTM(nn.Module):
    """A bidirectional LSTM over time, projected back to its input's width: ``(B, T, H)`` to ``(B,
    T, H)``.

    With ``max_steps``, a longer input is cut into frames of that many steps that overlap by half,
    each frame runs on its own, and the outer quarters of a frame, which lack context, are dropped.
    """

    def __init__(
        self, dim: int, layers: int = 1, *, max_steps: int | None = None, skip: bool = False
    ) -> None:
        super().__init__()
        if max_steps is not None and max_steps % 4:
            raise ValueError(f"max_steps must be a multiple of 4, not {max_steps}")
        self.max_steps = max_steps
        self.skip = skip
        self.lstm = nn.LSTM(dim, dim, num_layers=layers, bidirectional=True)
        self.linear = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        framed = self.max_steps is not None and x.shape[1] > self.max_steps
        y = self._framed(x) if framed else self._run(x)
        return y + x if self.skip else y

    def _run(self, x: Tensor) -> Tensor:
        # Measured: oneDNN takes 90 ms for three sequences in bf16 at once, 13 ms for one.
        few = x.device.type == "cpu" and x.dtype == torch.bfloat16 and len(x) < 7
        parts = [self.lstm(part.transpose(0, 1))[0] for part in (x.split(1) if few else (x,))]
        return self.linear(torch.cat(parts, dim=1)).transpose(0, 1)

    def _framed(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        width = self.max_steps or length
        stride, edge = width // 2, width // 4
        count = math.ceil(length / stride)
        padded = F.pad(x, (0, 0, 0, (count + 1) * stride - length))
        halves = padded.view(batch, count + 1, stride, dim)
        frames = torch.cat([halves[:, :-1], halves[:, 1:]], dim=2)  # (B, count, width, H)
        y = self._run(frames.reshape(-1, width, dim)).reshape(batch, count, width, dim)
        centres = y[:, :, edge : width - edge].reshape(batch, count * stride, dim)
        return torch.cat([y[:, 0, :edge], centres, y[:, -1, width - edge :]], dim=1)[:, :length]


class LocalState(nn.Module):
    """Multi-head attention over time whose reach each query chooses itself: ``(B, T, H)`` to ``(B,
    T, H)``.

    There is no positional embedding. The score of key t for query s is lowered by ``slope(s) · |t -
    s|``, where the slope is a sum of ``ndecay`` gates that the query computes; a step never attends
    to itself.
    """

    SELF_SCORE = -100.0

    def __init__(self, channels: int, *, heads: int = 4, ndecay: int = 4) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(
                f"local attention with {heads} heads needs channels / dconv_comp to be a multiple "
                f"of {heads} in every layer from dconv_attn on, not {channels}"
            )
        self.heads = heads
        self.ndecay = ndecay
        self.content = nn.Conv1d(channels, channels, 1)
        self.query = nn.Conv1d(channels, channels, 1)
        self.key = nn.Conv1d(channels, channels, 1)
        self.query_decay = nn.Conv1d(channels, heads * ndecay, 1)
        self.proj = nn.Conv1d(channels, channels, 1)
        with torch.no_grad():  # gates nearly closed: the widest reach at the start
            self.query_decay.weight.mul_(0.01)
            assert self.query_decay.bias is not None
            self.query_decay.bias.fill_(-2.0)

    def forward(self, x: Tensor) -> Tensor:
        length, channels = x.shape[1:]
        queries, keys, content = (
            pointwise(conv, x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, ·)
            for conv in (self.query, self.key, self.content)
        )
        exact = torch.promote_types(x.dtype, torch.float32)  # half precision can't count to 300
        steps = torch.arange(length, device=x.device, dtype=exact)
        distance = (steps[:, None] - steps).abs()
        scores = queries @ keys.transpose(2, 3) / math.sqrt(channels // self.heads)
        scores = scores - self._slopes(x)[..., None] * distance
        scores = scores.masked_fill(distance == 0, self.SELF_SCORE)
        attended = scores.softmax(dim=-1).to(content.dtype) @ content
        return x + pointwise(self.proj, attended.transpose(1, 2).flatten(2))

    def _slopes(self, x: Tensor) -> Tensor:
        """How fast the score falls with distance, for every head and query: ``(B, heads, T)``."""
        gates = pointwise(self.query_decay, x).unflatten(2, (self.heads, self.ndecay)).sigmoid() / 2
        decays = torch.arange(1, self.ndecay + 1, device=x.device, dtype=gates.dtype)
        return torch.einsum("bthd,d->bht", gates, decays) / math.sqrt(self.ndecay)


def pointwise(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """A convolution of kernel 1 over sequences ``(B, T, H)``."""
    return F.linear(x, conv.weight[:, :, 0], conv.bias)


class DConv(nn.Module):
    """Residual branches of dilated convolutions in a narrow space, with an LSTM and local attention
    where asked.

    Each of the ``depth`` branches is: convolution down to ``channels / compress``, norm,
    activation, [BLSTM], [LocalState], convolution back up, norm, GLU, LayerScale. A negative
    ``depth`` means ``|depth|`` branches without dilation. Each frequency runs on its own.
    """

    def __init__(  # noqa: PLR0913
        self,
        channels: int,
        *,
        compress: float = 4,
        depth: int = 2,
        init: float = 1e-4,
        attn: bool = False,
        lstm: bool = False,
        gelu: bool = True,
    ) -> None:
        super().__init__()
        hidden = int(channels / compress)
        if hidden < 1:
            raise ValueError(
                f"dconv_comp={compress} leaves nothing of a layer of {channels} channels: "
                "it must be at most the width of every layer"
            )
        self.layers: Any = nn.ModuleList()
        for index in range(abs(depth)):
            dilation = 2**index if depth > 0 else 1
            narrow = [
                Conv1d(channels, hidden, 3, dilation=dilation, padding=dilation),
                RowNorm(1, hidden),
                nn.GELU() if gelu else nn.ReLU(),
            ]
            widen = [
                nn.Conv1d(hidden, 2 * channels, 1),
                nn.GroupNorm(1, 2 * channels),
                nn.GLU(dim=1),
                LayerScale(channels, init),
            ]
            attend = [LocalState(hidden)] if attn else []
            recur = [BLSTM(hidden, layers=2, max_steps=200, skip=True)] if lstm else []
            self.layers.append(nn.Sequential(*narrow, *recur, *attend, *widen))

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.layers:
            down, norm, activation, *context, up, norm_up, _, scale = branch
            y = rows(activation(norm(down(x))))
            for layer in context:
                y = layer(y)
            value, gate = normed_halves(y, up, norm_up, scale.scale)
            bins = x.shape[2]
            x = torch.addcmul(x, unrows(value, bins), unrows(gate.sigmoid_(), bins))
        return x


def normed_halves(
    x: Tensor, conv: nn.Conv1d, norm: nn.GroupNorm, gain: Tensor
) -> tuple[Tensor, Tensor]:
    """The two halves of the channels of ``norm(conv(x))``, the first times ``gain``, for ``x (R, T,
    H)`` and a convolution of kernel 1: ``(R, T, H')`` each.

    The wide ``conv(x)`` is never there: the norm has one group, so that it is one shift and one
    factor for each row, and these follow from the mean and covariance of the few channels of x.
    They are applied to x, where three more columns carry what shift and biases add.
    """
    assert conv.bias is not None
    shift, factor = moments(x, conv, norm.eps)
    columns = torch.stack([factor, -shift * factor, torch.ones_like(factor)], dim=-1)
    columns = columns.to(x.dtype)[:, None].expand(-1, x.shape[1], -1)
    x = torch.cat([(x * factor[:, None, None]).to(x.dtype), columns], dim=-1)
    weight = torch.cat([conv.weight[:, :, 0], conv.bias[:, None]], dim=1) * norm.weight[:, None]
    weight = torch.cat([weight, norm.weight[:, None], norm.bias[:, None]], dim=1)
    value, gate = weight.chunk(2)
    return F.linear(x, gain[:, None] * value), F.linear(x, gate)


def moments(x: Tensor, conv: nn.Conv1d, eps: float) -> tuple[Tensor, Tensor]:
    """Mean, and 1 over the deviation, of all that ``conv``, of kernel 1, makes of each row of ``x
    (R, T, H)``: ``(R,)`` each, in fp32 or better.

    With y = Wx + b and averages over time and output channels: E[y] = E_c[W E[x] + b], and Var[y] =
    tr(WᵀW Cov[x]) / C + Var_c[W E[x] + b].
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    with full_precision(x):
        x, weight = x.to(exact), conv.weight[:, :, 0].to(exact)
        mean = x.mean(dim=1)
        covariance = products(x) / x.shape[1] - mean[:, :, None] * mean[:, None]
        centres = F.linear(mean, weight, None if conv.bias is None else conv.bias.to(exact))
        spread = (covariance * (weight.T @ weight)).sum(dim=(1, 2)) / len(weight)
        variance = spread.clamp(min=0) + centres.var(dim=1, correction=0)
        return centres.mean(dim=1), (variance + eps).rsqrt()


def products(x: Tensor) -> Tensor:
    """Sums over time of the products of all channels, ``(R, T, H)`` to ``(R, H, H)``.

    In blocks: sums over 100,000 steps, one after the other, are 1e-5 off in fp32.
    """
    if x.shape[1] > BLOCK:
        padded = F.pad(x, (0, 0, 0, -x.shape[1] % BLOCK))
        blocks = padded.unflatten(1, (-1, BLOCK)).flatten(0, 1)
        return products(blocks).view(x.shape[0], -1, *blocks.shape[2:], blocks.shape[2]).sum(dim=1)
    return x.transpose(1, 2) @ x


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Without the autocast that may be on for the device of ``x``."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


class ScaledEmbedding(nn.Module):
    """An embedding stored ``scale`` times smaller than it acts, which makes it learn that much
    faster.

    ``smooth`` starts it as a random walk over the index, normalised to unit variance, so that
    neighbours are alike.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, scale: float = 10.0, smooth: bool = False
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_embeddings, embedding_dim)
        self.scale = scale
        with torch.no_grad():
            if smooth:
                walk = self.embedding.weight.cumsum(dim=0)
                self.embedding.weight.copy_(
                    walk / torch.arange(1, num_embeddings + 1)[:, None].sqrt()
                )
            self.embedding.weight.div_(scale)

    def forward(self, index: Tensor) -> Tensor:
        return self.embedding(index) * self.scale


class Resample(nn.Module):
    """Windowed-sinc resampling by the ratio ``new / old`` along the last axis: T samples to ``⌊T ·
    new / old⌋``.

    J. O. Smith's algorithm with the constants the released models were trained with: 24 zero
    crossings, cut-off at 0.945 of the lower Nyquist frequency, a squared-cosine window, each phase
    normalised to unit gain at 0 Hz.
    """

    ZEROS = 24
    ROLLOFF = 0.945
    STEPS = 64  # that one matrix product takes: at least what the window sees of the next
    kernel: Tensor

    def __init__(self, old: int, new: int) -> None:
        super().__init__()
        self.old, self.new = old, new
        self.width = math.ceil(self.ZEROS * old / (min(old, new) * self.ROLLOFF))
        self.register_buffer("kernel", self._kernel(), persistent=False)

    def _kernel(self) -> Tensor:
        """What ``STEPS · old`` samples and those around them add to ``STEPS · new``: (in, out)."""
        samples = torch.arange(-self.width, self.width + self.old) / self.old
        phases = torch.arange(self.new)[:, None] / self.new
        t = (samples - phases) * min(self.old, self.new) * self.ROLLOFF
        t = t.clamp(-self.ZEROS, self.ZEROS)
        kernel = torch.sinc(t) * torch.cos(math.pi * t / self.ZEROS / 2) ** 2
        kernel = kernel / kernel.sum(1, keepdim=True)
        ends = self.old * (self.STEPS - 1)
        moved = [F.pad(kernel, (at, ends - at)) for at in range(0, ends + 1, self.old)]
        return torch.cat(moved).T.contiguous()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """A network in half precision resamples as well as in fp32."""
        super()._apply(fn, recurse)
        exact = torch.promote_types(self.kernel.dtype, torch.float32)
        if exact != self.kernel.dtype:
            self.kernel = self._kernel().to(self.kernel.device, exact)
        return self

    def forward(self, x: Tensor) -> Tensor:
        length, block = x.shape[-1], self.STEPS * self.old
        count = math.ceil(length / block)
        after = (count + 1) * block - self.width - length
        first, last = x[..., :1], x[..., -1:]
        ends = (*x.shape[:-1], self.width), (*x.shape[:-1], after)
        padded = torch.cat([first.expand(ends[0]), x, last.expand(ends[1])], dim=-1)
        blocks = padded.to(self.kernel.dtype).unflatten(-1, (-1, block))
        seen = torch.cat([blocks[..., :-1, :], blocks[..., 1:, : 2 * self.width]], dim=-1)
        with full_precision(x):
            y = (seen @ self.kernel).flatten(-2)
        return y[..., : length * self.new // self.old].to(x.dtype)


def center_trim(x: Tensor, length: int) -> Tensor:
    """The middle ``length`` steps of ``x (..., T)``; of an odd excess the extra step goes at the
    end."""
    excess = x.shape[-1] - length
    if excess < 0:
        raise ValueError(f"cannot trim {x.shape[-1]} steps to {length}")
    return x[..., excess // 2 : x.shape[-1] - (excess - excess // 2)]


def rescale_convolutions(module: nn.Module, reference: float) -> None:
    """Divide the weights and bias of every convolution by ``sqrt(std(weight) / reference)``, in
    place ("Music Source Separation in the Waveform Domain", Défossez et al., 2019, section
    4.1.2)."""
    kinds = (nn.Conv1d, nn.ConvTranspose1d, nn.Conv2d, nn.ConvTranspose2d)
    with torch.no_grad():
        for conv in (m for m in module.modules() if isinstance(m, kinds)):
            scale = (conv.weight.std() / reference).sqrt()
            conv.weight.div_(scale)
            if conv.bias is not None:
                conv.bias.div_(scale)
