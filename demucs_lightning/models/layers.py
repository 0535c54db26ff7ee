"""Building blocks shared by every Demucs: the residual DConv branch and what it is made of,
resampling, initialisation.

All blocks map ``(B, H, T)`` to ``(B, H, T)``. The names of the parameters are the reference's, so
its weights load as they are. DConv, the biased local attention and the LayerScale inside it are
described in "Hybrid Spectrogram and Waveform Source Separation" (Défossez, 2021), section 4.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LayerScale(nn.Module):
    """A learnt gain per channel, small at first so that a residual branch starts close to the
    identity (Touvron et al., 2021, "Going deeper with image transformers")."""

    def __init__(self, channels: int, init: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), float(init)))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale[:, None] * x


class BLSTM(nn.Module):
    """A bidirectional LSTM over time, projected back to its input's width: ``(B, H, T)`` to ``(B,
    H, T)``.

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
        framed = self.max_steps is not None and x.shape[-1] > self.max_steps
        y = self._framed(x) if framed else self._run(x)
        return y + x if self.skip else y

    def _run(self, x: Tensor) -> Tensor:
        return self.linear(self.lstm(x.permute(2, 0, 1))[0]).permute(1, 2, 0)

    def _framed(self, x: Tensor) -> Tensor:
        batch, dim, length = x.shape
        width = self.max_steps or length
        stride, edge = width // 2, width // 4
        count = math.ceil(length / stride)
        padded = F.pad(x, (0, width))[..., : (count + 1) * stride]
        halves = padded.reshape(batch, dim, count + 1, stride).transpose(1, 2)
        frames = torch.cat([halves[:, :-1], halves[:, 1:]], dim=-1)  # (B, count, H, width)
        y = self._run(frames.reshape(-1, dim, width)).view(batch, count, dim, width)
        centres = y[..., edge : width - edge].transpose(1, 2).reshape(batch, dim, count * stride)
        return torch.cat([y[:, 0, :, :edge], centres, y[:, -1, :, width - edge :]], dim=-1)[
            ..., :length
        ]


class LocalState(nn.Module):
    """Multi-head attention over time whose reach each query chooses itself: ``(B, H, T)`` to ``(B,
    H, T)``.

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
        batch, channels, length = x.shape
        queries, keys, content = (
            conv(x).view(batch, self.heads, -1, length)
            for conv in (self.query, self.key, self.content)
        )
        exact = torch.promote_types(x.dtype, torch.float32)  # half precision can't count to 300
        steps = torch.arange(length, device=x.device, dtype=exact)
        distance = (steps[:, None] - steps).abs()
        scores = queries.transpose(2, 3) @ keys / math.sqrt(channels // self.heads)
        scores = scores - self._slopes(x)[..., None] * distance
        scores = scores.masked_fill(distance == 0, self.SELF_SCORE)
        attended = content @ scores.softmax(dim=-1).to(content.dtype).transpose(2, 3)
        return x + self.proj(attended.reshape(batch, channels, length))

    def _slopes(self, x: Tensor) -> Tensor:
        """How fast the score falls with distance, for every head and query: ``(B, heads, T)``."""
        gates = self.query_decay(x).view(x.shape[0], self.heads, self.ndecay, -1).sigmoid() / 2
        decays = torch.arange(1, self.ndecay + 1, device=x.device, dtype=gates.dtype)
        return torch.einsum("bhdt,d->bht", gates, decays) / math.sqrt(self.ndecay)


class DConv(nn.Module):
    """Residual branches of dilated convolutions in a narrow space, with an LSTM and local attention
    where asked.

    Each of the ``depth`` branches is: convolution down to ``channels / compress``, norm,
    activation, [BLSTM], [LocalState], convolution back up, norm, GLU, LayerScale. A negative
    ``depth`` means ``|depth|`` branches without dilation.
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
                nn.Conv1d(channels, hidden, 3, dilation=dilation, padding=dilation),
                nn.GroupNorm(1, hidden),
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
            y = x
            *inner, scale = branch
            for layer in inner:
                y = layer(y)
            x = torch.addcmul(x, scale.scale[:, None], y)  # scaled and added in one pass
        return x


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
    kernel: Tensor

    def __init__(self, old: int, new: int) -> None:
        super().__init__()
        self.old, self.new = old, new
        cutoff = min(old, new) * self.ROLLOFF
        self.width = math.ceil(self.ZEROS * old / cutoff)
        samples = torch.arange(-self.width, self.width + old) / old
        phases = torch.arange(new)[:, None] / new
        t = ((samples - phases) * cutoff).clamp(-self.ZEROS, self.ZEROS)
        kernel = torch.sinc(t) * torch.cos(math.pi * t / self.ZEROS / 2) ** 2
        self.register_buffer(
            "kernel", (kernel / kernel.sum(1, keepdim=True))[:, None], persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        *lead, length = x.shape
        padded = F.pad(
            x.reshape(-1, 1, length), (self.width, self.width + self.old), mode="replicate"
        )
        phases = F.conv1d(padded, self.kernel.to(x.dtype), stride=self.old)  # (·, new, T / old)
        return phases.transpose(1, 2).reshape(*lead, -1)[..., : length * self.new // self.old]


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
