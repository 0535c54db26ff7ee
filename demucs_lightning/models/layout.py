"""How activations lie in memory, and the layers that keep them so.

Inside a network every activation is ``(B, H, F, N)`` with its channels next to each other
(``torch.channels_last``); a time branch has F = 1. A convolution is then one matrix product without
copies of what it reads or writes, on CPUs and tensor cores alike, and the rows ``(B · F, N, H)``
over which DConv runs are a view. Parameters keep the shapes that ``nn.Conv1d`` gives them.

On CPUs, what follows a convolution without a norm is gated in two halves, each a tensor of its own:
the two halves of one tensor would alternate in memory, and pointwise passes over them are slow.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demucs_lightning.models.precision import cast, convolution, is_half, linear

Halves = Tensor | tuple[Tensor, Tensor]
PHASED = 16  # times as many steps as channels: then another order of weights costs nothing


def on_gpu(x: Tensor) -> bool:
    return x.device.type == "cuda"


def alone_on_gpu(x: Tensor) -> bool:
    """On a GPU, where each operation is a pass of its own: no compiler will join them."""
    return on_gpu(x) and not torch.compiler.is_compiling()


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def cut(x: Tensor, axis: int, start: int, stop: int) -> Tensor:
    """Steps ``start`` to ``stop`` of ``axis``, 2 or 3. The gradient of a slice lies as the sliced
    tensor's axes are numbered, so that it is taken where the channels are last."""
    return x.permute(0, 2, 3, 1).narrow(axis - 1, start, stop - start).permute(0, 3, 1, 2)


def rows(x: Tensor) -> Tensor:
    """``(B, H, F, N)`` as sequences over time ``(B · F, N, H)``, a view."""
    return x.permute(0, 2, 3, 1).flatten(0, 1)


def unrows(x: Tensor, bins: int) -> Tensor:
    """``(B · F, N, H)`` as ``(B, H, F, N)`` with F = ``bins``, a view."""
    return x.view(-1, bins, *x.shape[1:]).permute(0, 3, 1, 2)


class Conv1d(nn.Conv1d):
    """Over the last axis of ``(B, H, F, N)``, for each bin on its own."""

    def forward(self, input: Tensor) -> Tensor:
        return self.run(input, self.weight, self.bias)

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        stride, pad, dilation = self.stride[0], int(self.padding[0]), self.dilation[0]
        if weight.shape[2] == stride == 1 and _is_plain(x):
            return linear(x.permute(0, 2, 3, 1), weight.squeeze(2), bias).permute(0, 3, 1, 2)
        if x.shape[3] > len(weight):
            return convolution(x, weight[:, :, None], bias, ((1, stride), (0, pad), (1, dilation)))
        # Of few steps with many channels, it takes less to copy the steps that each kernel sees
        # than to bring the weights into the order that a convolution needs.
        x, taps = F.pad(x.permute(0, 2, 3, 1), (0, 0, pad, pad)), weight.shape[2]
        count = (x.shape[2] - dilation * (taps - 1) - 1) // stride * stride + 1
        starts = range(0, taps * dilation, dilation)
        seen = torch.stack([x[:, :, at : at + count : stride] for at in starts], dim=-1)
        return linear(seen.flatten(3), weight.flatten(1), bias).permute(0, 3, 1, 2)


def _is_plain(x: Tensor) -> bool:
    """In fp32 or better and on a CPU, where a product in training is faster than a convolution."""
    return x.device.type == "cpu" and not is_half(x) and torch.is_grad_enabled()


class Conv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self.run(input, self.weight, self.bias)

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        over, pad = weight.shape[2], int(self.padding[0])
        if x.shape[2] == self.stride[0] == 1 and over == 2 * pad + 1:
            # The only bin meets the middle of each kernel, and what is around it is padding.
            weight = weight[:, :, pad : pad + 1]
            return self._run(x, weight, bias, (0, int(self.padding[1])))
        return self._run(x, weight, bias, (pad, int(self.padding[1])))

    def _run(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]
    ) -> Tensor:
        if weight.shape[2:] == (1, 1) and _is_plain(x):  # oneDNN has no 1x1 convolution in fp32
            return linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
        return convolution(x, weight, bias, (self.stride, padding, self.dilation))


class ConvTranspose1d(nn.ConvTranspose1d):
    """Over the last axis of ``(B, H, F, N)``, for each bin on its own."""

    def forward(self, input: Tensor) -> Tensor:
        outputs, taps, stride = self.out_channels, self.kernel_size[0], self.stride[0]
        assert self.bias is not None
        weight, bias = self.weight, cast(self.bias, input)
        if input.shape[3] >= PHASED * input.shape[1] and taps % stride == 0:
            return by_phases(input, cast(weight, input), bias, stride)
        if input.shape[3] > outputs or taps % stride:
            steps = (1, stride), (0, 0), (1, 1)
            return convolution(input, weight[:, :, None], bias, steps, transposed=True)
        # As in Conv1d, the weights as they are: what each step gives, then the sum of overlaps.
        given = linear(input.permute(0, 2, 3, 1), weight.flatten(1).T)
        given = given.unflatten(3, (outputs, -1, stride)).permute(4, 0, 1, 2, 5, 3)
        last = len(given) - 1
        parts = [F.pad(part, (0, 0, 0, 0, at, last - at)) for at, part in enumerate(given)]
        return (torch.stack(parts).sum(dim=0).flatten(2, 3) + bias).permute(0, 3, 1, 2)


def by_phases(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """A transposed convolution over the last axis as a convolution with ``stride`` times the
    channels, one group of them for each of the steps that lie between two of the input; channels
    last, these follow one another in memory.

    Measured on a CPU: three times as fast for the last layer of a network, slower where channels
    are many; and oneDNN takes up to 9 s to prepare a transposed convolution of few channels for
    some lengths.
    """
    weight = weight.unflatten(2, (-1, stride)).flip(2).permute(3, 1, 0, 2).flatten(0, 1)[:, :, None]
    padding = (0, weight.shape[3] - 1)
    y = convolution(x, weight, bias.repeat(stride), ((1, 1), padding, (1, 1)))
    y = y.permute(0, 2, 3, 1).reshape(y.shape[0], y.shape[2], -1, len(bias))
    return y.permute(0, 3, 1, 2)


def by_phases_of_bins(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """``by_phases`` over the bins of ``x``, of ``weight (H, H', K, 1)``: the groups have to be
    brought in order here, one copy.

    Measured on a CPU, forward and backward: in bf16 two to three times as fast, in fp32 slower.
    """
    weight = weight.unflatten(2, (-1, stride)).flip(2).permute(3, 1, 0, 2, 4).flatten(0, 1)
    padding = (weight.shape[2] - 1, 0)
    y = convolution(x, weight, bias.repeat(stride), ((1, 1), padding, (1, 1)))
    y = y.permute(0, 2, 3, 1).unflatten(3, (stride, -1)).transpose(2, 3)
    return y.flatten(1, 2).permute(0, 3, 1, 2)


class ConvTranspose2d(nn.ConvTranspose2d):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        (taps, width), (stride, _), bias = self.kernel_size, self.stride, self.bias
        many = input.shape[2] * input.shape[3] >= PHASED * input.shape[1]
        lowered = input.dtype == torch.bfloat16 and input.device.type == "cpu"
        if lowered and many and width == 1 and taps % stride == 0 and bias is not None:
            return by_phases_of_bins(input, cast(self.weight, input), cast(bias, input), stride)
        steps = self.stride, (0, 0), self.dilation
        return convolution(input, self.weight, bias, steps, transposed=True)


class HalvesConv1d(Conv1d):
    """A ``Conv1d`` whose output channels come in two halves, for ``glu``."""

    def forward(self, input: Tensor) -> Halves:
        return in_halves(self, input)


class HalvesConv2d(Conv2d):
    """A convolution whose output channels come in two halves, for ``glu``."""

    def forward(self, input: Tensor) -> Halves:
        return in_halves(self, input)


def in_halves(conv: Conv1d | Conv2d, x: Tensor) -> Halves:
    if on_gpu(x):
        return conv.run(x, conv.weight, conv.bias)
    weights = conv.weight.chunk(2)
    biases = (None, None) if conv.bias is None else conv.bias.chunk(2)
    return conv.run(x, weights[0], biases[0]), conv.run(x, weights[1], biases[1])


def glu(x: Halves) -> Tensor:
    """The first half of the channels, gated by the second."""
    if isinstance(x, Tensor) and on_gpu(x):  # its gradient lies as the axes are numbered
        return F.glu(x.permute(0, 2, 3, 1), dim=3).permute(0, 3, 1, 2)
    if isinstance(x, Tensor):
        return F.glu(x, dim=1)
    value, gate = x  # fresh from a convolution, which doesn't need them any more
    if value.requires_grad:
        return value * gate.sigmoid()
    return value.mul_(gate.sigmoid_())


class GLU(nn.Module):
    def forward(self, x: Halves) -> Tensor:
        return glu(x)
