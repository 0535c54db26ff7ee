"""What looks along time inside a DConv and in the middle of Demucs: an LSTM, and local attention.

Both map sequences ``(B, T, H)`` to the same shape ("Hybrid Spectrogram and Waveform Source
Separation", Défossez, 2021, section 4.2). The names of the parameters are the reference's.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demucs_lightning.models.lstm import WIDE, lstm, reads_less
from demucs_lightning.models.precision import exact, linear
from demucs_lightning.models.recompute import recomputed

FEW, NARROW = 4, 256  # sequences that oneDNN should take one by one, and states where never


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
        # Measured: of wide states oneDNN takes 90 ms for two to six sequences in bf16, 13 for one.
        few = 1 < len(x) < FEW and x.device.type == "cpu" and x.dtype == torch.bfloat16
        few = few and NARROW < self.lstm.hidden_size < WIDE and not torch.is_grad_enabled()
        parts = [self._recur(part.transpose(0, 1)) for part in (x.split(1) if few else (x,))]
        weight, bias = self.linear.weight, self.linear.bias
        return linear(torch.cat(parts, dim=1), weight, bias).transpose(0, 1)

    def _recur(self, x: Tensor) -> Tensor:
        own, on_cpu = self.linear.weight.dtype, x.device.type == "cpu"
        slow = x.dtype != own if torch.is_grad_enabled() else reads_less(self.lstm, x)
        if on_cpu and slow:
            return lstm(self.lstm, x)
        if x.dtype == own:
            return self.lstm(x)[0]
        # On a GPU autocast would take fp16 for cuDNN, whatever its own precision is.
        with torch.autocast(x.device.type, x.dtype, enabled=on_cpu):
            return self.lstm(x if on_cpu else x.to(own))[0].to(x.dtype)

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
        queries, keys, content = (
            pointwise(conv, x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, ·)
            for conv in (self.query, self.key, self.content)
        )
        attended = recomputed(self, self._attend, queries, keys, content, self._slopes(x))
        return x + pointwise(self.proj, attended.transpose(1, 2).flatten(2))

    def _attend(self, queries: Tensor, keys: Tensor, content: Tensor, slopes: Tensor) -> Tensor:
        length, width = queries.shape[2:]
        # Half precision can't count to 300.
        steps = torch.arange(length, device=queries.device, dtype=exact(queries))
        distance = (steps[:, None] - steps).abs()
        scores = queries @ keys.transpose(2, 3) / math.sqrt(width)
        scores = scores - slopes[..., None] * distance
        scores = scores.masked_fill(distance == 0, self.SELF_SCORE)
        return scores.softmax(dim=-1).to(content.dtype) @ content

    def _slopes(self, x: Tensor) -> Tensor:
        """How fast the score falls with distance, for every head and query: ``(B, heads, T)``."""
        gates = pointwise(self.query_decay, x).unflatten(2, (self.heads, self.ndecay)).sigmoid() / 2
        decays = torch.arange(1, self.ndecay + 1, device=x.device, dtype=gates.dtype)
        return torch.einsum("bthd,d->bht", gates, decays) / math.sqrt(self.ndecay)


def pointwise(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """A convolution of kernel 1 over sequences ``(B, T, H)``."""
    return linear(x, conv.weight.squeeze(2), conv.bias)
