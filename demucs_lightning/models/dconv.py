"""DConv, the residual branches inside the layers of every Demucs.

``(B, H, F, N)`` to the same shape, along N. Described in "Hybrid Spectrogram and Waveform Source
Separation" (Défossez, 2021), section 4. The names of the parameters are the reference's.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demucs_lightning.models.layers import LayerScale
from demucs_lightning.models.layout import Conv1d, GroupNorm, RowNorm, rows, unrows
from demucs_lightning.models.precision import cast, exact, linear, without_autocast
from demucs_lightning.models.recompute import recomputed
from demucs_lightning.models.sequences import BLSTM, LocalState

BLOCK = 512  # steps that are added up one after the other


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
                GroupNorm(1, 2 * channels),
                nn.GLU(dim=1),
                LayerScale(channels, init),
            ]
            attend = [LocalState(hidden)] if attn else []
            recur = [BLSTM(hidden, layers=2, max_steps=200, skip=True)] if lstm else []
            self.layers.append(nn.Sequential(*narrow, *recur, *attend, *widen))

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.layers:
            down, norm, activation, *context, up, norm_up, _, scale = branch
            narrow, wide = nn.Sequential(norm, activation), (up, norm_up, scale)
            y = down(x)
            if context:  # an LSTM takes its time: it does not run again
                y = nn.Sequential(*context)(rows(narrow(y)))
                x = recomputed(self, self._widened, x, y, *wide)
            else:
                x = recomputed(self, self._narrowed_widened, x, y, narrow, *wide)
        return x

    @staticmethod
    def _widened(x: Tensor, y: Tensor, up: nn.Conv1d, norm: GroupNorm, scale: LayerScale) -> Tensor:
        """``x (B, H, F, N)`` and what ``y (B · F, N, H')`` adds to it."""
        value, gate = normed_halves(y, up, norm, scale.scale)
        gate = gate.sigmoid() if gate.requires_grad else gate.sigmoid_()
        return torch.addcmul(x, unrows(value, x.shape[2]), unrows(gate, x.shape[2]))

    def _narrowed_widened(self, x: Tensor, y: Tensor, narrow: nn.Module, *wide: Any) -> Tensor:
        return self._widened(x, rows(narrow(y)), *wide)


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
    return linear(x, gain[:, None] * value), linear(x, gate)


def moments(x: Tensor, conv: nn.Conv1d, eps: float) -> tuple[Tensor, Tensor]:
    """Mean, and 1 over the deviation, of all that ``conv``, of kernel 1, makes of each row of ``x
    (R, T, H)``: ``(R,)`` each, in fp32 or better.

    With y = Wx + b and averages over time and output channels: E[y] = E_c[W E[x] + b], and Var[y] =
    tr(WᵀW Cov[x]) / C + Var_c[W E[x] + b].
    """
    with without_autocast(x):
        x = x.to(exact(x))
        weight, bias = cast(conv.weight[:, :, 0], x), cast(conv.bias, x)
        mean = x.mean(dim=1)
        covariance = products(x) / x.shape[1] - mean[:, :, None] * mean[:, None]
        centres = F.linear(mean, weight, bias)
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
