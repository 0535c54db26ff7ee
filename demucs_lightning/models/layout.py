"""How activations lie in memory, and the layers that keep them so.

Inside a network every activation is ``(B, H, F, N)`` with its channels next to each other
(``torch.channels_last``); a time branch has F = 1. A convolution is then one matrix product without
copies of what it reads or writes, on CPUs and tensor cores alike, and the rows ``(B · F, N, H)``
over which DConv runs are a view. Parameters keep the shapes that ``nn.Conv1d`` gives them.

What follows a convolution without a norm is gated in two halves, each a tensor of its own: the two
halves of one tensor would alternate in memory, and pointwise passes over them are slow.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Halves = Tensor | tuple[Tensor, Tensor]
Steps = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def entering(x: Tensor, network: nn.Module) -> Tensor:
    """``x (B, H, F, N)`` as the network takes it: channels last, in the precision of its
    weights."""
    return channels_last(x.to(next(network.parameters()).dtype))


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def rows(x: Tensor) -> Tensor:
    """``(B, H, F, N)`` as sequences over time ``(B · F, N, H)``, a view."""
    return x.permute(0, 2, 3, 1).flatten(0, 1)


def unrows(x: Tensor, bins: int) -> Tensor:
    """``(B · F, N, H)`` as ``(B, H, F, N)`` with F = ``bins``, a view."""
    return x.view(-1, bins, *x.shape[1:]).permute(0, 3, 1, 2)


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, steps: Steps) -> Tensor:
    """``F.conv2d`` with the stride, padding and dilation of ``steps``.

    With a stride, few channels go through fp32 on CPUs: torch 2.13's bf16 is wrong there for 8 and
    12 of them along frequency, 16 and 24 along time, with kernels of 8 and strides of 4.
    """
    stride, padding, dilation = steps
    lowered = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if lowered else x.dtype
    few = x.device.type == "cpu" and x.shape[1] < 32 and max(stride) > 1
    if not few or dtype != torch.bfloat16:
        return F.conv2d(x, weight, bias, stride, padding, dilation)
    with torch.autocast("cpu", enabled=False):
        exact = None if bias is None else bias.float()
        y = F.conv2d(x.float(), weight.float(), exact, stride, padding, dilation)
    return y.to(dtype)


class Conv1d(nn.Conv1d):
    """Over the last axis of ``(B, H, F, N)``, for each bin on its own."""

    def forward(self, input: Tensor) -> Tensor:
        return self.run(input, self.weight, self.bias)

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        stride, pad, dilation = self.stride[0], int(self.padding[0]), self.dilation[0]
        if x.shape[3] > len(weight):
            return convolved(x, weight[:, :, None], bias, ((1, stride), (0, pad), (1, dilation)))
        # Of few steps with many channels, it takes less to copy the steps that each kernel sees
        # than to bring the weights into the order that a convolution needs.
        x, taps = F.pad(x.permute(0, 2, 3, 1), (0, 0, pad, pad)), weight.shape[2]
        count = (x.shape[2] - dilation * (taps - 1) - 1) // stride * stride + 1
        starts = range(0, taps * dilation, dilation)
        seen = torch.stack([x[:, :, at : at + count : stride] for at in starts], dim=-1)
        return F.linear(seen.flatten(3), weight.flatten(1), bias).permute(0, 3, 1, 2)


class Conv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self.run(input, self.weight, self.bias)

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = int(self.padding[0]), int(self.padding[1])
        return convolved(x, weight, bias, (self.stride, padding, self.dilation))


class ConvTranspose1d(nn.ConvTranspose1d):
    """Over the last axis of ``(B, H, F, N)``, for each bin on its own."""

    def forward(self, input: Tensor) -> Tensor:
        outputs, taps, stride = self.out_channels, self.kernel_size[0], self.stride[0]
        if input.shape[3] > outputs or taps % stride:
            return F.conv_transpose2d(input, self.weight[:, :, None], self.bias, (1, stride))
        # As in Conv1d, the weights as they are: what each step gives, then the sum of overlaps.
        given = input.permute(0, 2, 3, 1) @ self.weight.flatten(1)
        given = given.unflatten(3, (outputs, -1, stride)).permute(4, 0, 1, 2, 5, 3)
        last = len(given) - 1
        parts = [F.pad(part, (0, 0, 0, 0, at, last - at)) for at, part in enumerate(given)]
        assert self.bias is not None
        return (torch.stack(parts).sum(dim=0).flatten(2, 3) + self.bias).permute(0, 3, 1, 2)


class HalvesConv1d(Conv1d):
    """A ``Conv1d`` whose output channels come in two halves, for ``glu``."""

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        return in_halves(self, input)


class HalvesConv2d(Conv2d):
    """A convolution whose output channels come in two halves, for ``glu``."""

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        return in_halves(self, input)


def in_halves(conv: Conv1d | Conv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    weights = conv.weight.chunk(2)
    biases = (None, None) if conv.bias is None else conv.bias.chunk(2)
    return conv.run(x, weights[0], biases[0]), conv.run(x, weights[1], biases[1])


def glu(x: Halves) -> Tensor:
    """The first half of the channels, gated by the second."""
    if isinstance(x, Tensor):
        return F.glu(x, dim=1)
    value, gate = x  # fresh from a convolution, which doesn't need them any more
    gate = gate.sigmoid_()
    return value * gate if value.requires_grad else value.mul_(gate)


class GLU(nn.Module):
    def forward(self, x: Halves) -> Tensor:
        return glu(x)


class RowNorm(nn.GroupNorm):
    """GroupNorm of one group over ``(B, H, F, N)``, for each bin on its own.

    A row lies in one piece: LayerNorm over it, with the weights of its channels again and again, is
    one pass, and exact. GroupNorm would go through it channel by channel, or add up 100,000 steps
    one after the other.
    """

    def forward(self, input: Tensor) -> Tensor:
        bins, frames = input.shape[2:]
        whole = rows(input).flatten(1)
        weight, bias = self.weight.repeat(frames), self.bias.repeat(frames)
        normed = F.layer_norm(whole, (len(weight),), weight, bias, self.eps)
        return unrows(normed.view(-1, frames, input.shape[1]), bins)
