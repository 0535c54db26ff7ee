"""DConv, the residual branches inside the layers of every Demucs.

``(B, H, F, N)`` to the same shape, along N. Described in "Hybrid Spectrogram and Waveform Source
Separation" (Défossez, 2021), section 4. The names of the parameters are the reference's.
"""

from typing import Any

import torch
from torch import Tensor, nn

from demucs_lightning.models.layers import LayerScale
from demucs_lightning.models.layout import Conv1d, alone_on_gpu, rows, unrows
from demucs_lightning.models.norms import GroupNorm, row_norm
from demucs_lightning.models.recompute import is_transformed, recomputed
from demucs_lightning.models.sequences import BLSTM, LocalState
from demucs_lightning.models.widening import Wide, normed_halves, widened


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
                GroupNorm(1, hidden),
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
            product = up.weight.squeeze(2), up.bias
            wide = Wide(*product, norm_up.weight, norm_up.bias, scale.scale)
            y = rows(down(x))
            if context:  # an LSTM takes its time: it does not run again
                y = nn.Sequential(*context)(activation(row_norm(norm, y)))
                x = self._widened(x, y, wide, norm_up.eps)
            else:
                x = self._widened(x, y, wide, norm_up.eps, norm, activation)
        return x

    def _widened(self, x: Tensor, y: Tensor, *how: Any) -> Tensor:
        """``x (B, H, F, N)`` and what ``y (B · F, N, H')`` adds to it, as in ``widening``."""
        if alone_on_gpu(x) and not is_transformed():
            return unrows(widened(rows(x), y, *how), x.shape[2])
        return recomputed(self, _added, x, y, *how)


def _added(x: Tensor, y: Tensor, wide: Wide, eps: float, *narrow: Any) -> Tensor:
    if narrow:
        norm, activation = narrow
        y = activation(row_norm(norm, y))
    value, gate = (unrows(half, x.shape[2]) for half in normed_halves(y, wide, eps))
    return torch.addcmul(x, value, gate.sigmoid() if gate.requires_grad else gate.sigmoid_())
