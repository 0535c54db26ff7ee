"""In which precision a network computes, and its products in a precision below fp32.

A network computes in the precision of its weights, or in that of autocast where this is on. Inside
it autocast is off: activations have the precision, and every layer brings its weights to that of
its input where it uses them. So training under autocast and ``model.bfloat16()`` are one path, and
no list of operations decides what happens. What has to be exact (moments, scores, positions) is
taken in fp32 where it is computed.

Where a GPU may take products of fp32 in TF32, these have 10 bits: as many as its convolutions have,
and three more than bf16, which is enough for all products here. Resampling is off by -70 dB then;
the moments of a DConv are products of what has been centred before, see ``widening``.

Products below fp32 keep their input and the weights as they are for backward, not the weights as
they were brought.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

TAPPED = 2  # times as many steps as channels: then a product for each tap is a large one
Steps = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def working(network: nn.Module, x: Tensor) -> torch.dtype:
    """The precision in which ``network`` computes what follows from ``x``."""
    own, kind = next(network.parameters()).dtype, x.device.type
    lowered = own == torch.float32 and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if lowered else own


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Without the autocast that may be on for the device of ``x``."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def exact(x: Tensor) -> torch.dtype:
    """fp32, or better where ``x`` is better."""
    return torch.promote_types(x.dtype, torch.float32)


def cast(parameter: Tensor | None, x: Tensor) -> Any:
    """A parameter, if there is one, in the precision of ``x``."""
    return None if parameter is None else parameter.to(x.dtype)


def is_half(x: Tensor) -> bool:
    return x.dtype in (torch.bfloat16, torch.float16)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` in the precision of ``x``."""
    x = x.contiguous()  # else torch multiplies step by step, with a copy of the weights for each
    if _is_lowered(x):
        return _Linear.apply(x, weight, bias)
    return F.linear(x, cast(weight, x), cast(bias, x))


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, steps: Steps, *, transposed: bool = False
) -> Tensor:
    """``F.conv2d``, or ``F.conv_transpose2d``, with the stride, padding and dilation of ``steps``,
    in the precision of ``x``."""
    if _is_lowered(x) or (not transposed and _is_slow_to_weigh(x, weight, steps)):
        return _Convolution.apply(x, weight, bias, steps, transposed)
    return _convolved(x, weight, bias, steps, transposed)


def _is_lowered(x: Tensor) -> bool:
    return is_half(x) and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _is_slow_to_weigh(x: Tensor, weight: Tensor, steps: Steps) -> bool:
    """Whether torch is slow with the gradient of ``weight``: in fp32 along time alone, on CPUs.

    2.13 takes four to eight times as long as for the gradient of the input.
    """
    alone = x.shape[2] == 1 and weight.shape[2] == 1 and x.shape[3] > TAPPED * x.shape[1]
    grouped = weight.shape[3] % steps[0][1] == 0 and (steps[0][1] == 1 or steps[2][1] == 1)
    plain = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    recorded = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return alone and grouped and plain and recorded


def _is_wrong(x: Tensor, channels: int, steps: Steps) -> bool:
    """Whether torch gets this wrong in bf16: steps in strides over few ``channels``, on CPUs.

    In 2.13 this happens with 8 and 12 of them along frequency, and 16 and 24 along time, with
    kernels of 8 and strides of 4; in the gradient of a transposed convolution as well.
    """
    few_in_strides = channels < 32 and max(steps[0]) > 1
    return few_in_strides and x.dtype == torch.bfloat16 and x.device.type == "cpu"


def _convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, steps: Steps, transposed: bool
) -> Tensor:
    if not transposed and _is_wrong(x, x.shape[1], steps):
        whole = None if bias is None else bias.float()
        return _convolved(x.float(), weight.float(), whole, steps, False).to(x.dtype)
    weight, bias = cast(weight, x), cast(bias, x)
    if transposed:
        return F.conv_transpose2d(x, weight, bias, *steps[:2], dilation=steps[2])
    return F.conv2d(x, weight, bias, *steps)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, steps: Steps, transposed: bool
    ) -> Tensor:
        return _convolved(x, weight, bias, steps, transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, weight, bias, ctx.steps, ctx.transposed = inputs
        ctx.save_for_backward(x, weight)
        ctx.sizes = None if bias is None else list(bias.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        wanted = list(ctx.needs_input_grad[:3])
        if ctx.transposed and wanted[0] and _is_wrong(gradient, gradient.shape[1], ctx.steps):
            of_input = _convolved(gradient, weight, None, ctx.steps, False)
            return of_input, *_gradients(ctx, gradient, x, weight, [False, *wanted[1:]])[1:]
        if not ctx.transposed and not is_half(x):
            of_weight = weighed(x, gradient, weight.shape[3], ctx.steps) if wanted[1] else None
            of_bias = gradient.sum(dim=(0, 2, 3)) if wanted[2] else None
            of_input = None
            if wanted[0]:
                of_input = _gradients(ctx, gradient, x, weight, [True, False, False])[0]
            return of_input, of_weight, of_bias, None, None
        return _gradients(ctx, gradient, x, weight, wanted)


def _gradients(ctx: Any, gradient: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> Any:
    none = [0, 0]
    found = torch.ops.aten.convolution_backward(
        *(gradient, x, weight.to(x.dtype), ctx.sizes, *ctx.steps),
        *(ctx.transposed, none, 1, wanted),
    )
    of_input, of_weight, of_bias = found
    weights = (None if each is None else each.to(weight.dtype) for each in (of_weight, of_bias))
    return of_input, *weights, None, None


def weighed(x: Tensor, gradient: Tensor, taps: int, steps: Steps) -> Tensor:
    """The gradient of the weights ``(O, C, 1, taps)`` of a convolution along time: of ``x (B, C, 1,
    T)``, given the ``gradient (B, O, 1, T')``.

    As many steps as the stride has are one row, so that every row meets one step of the gradient:
    a matrix product for each row that the kernel sees, of views.
    """
    stride, pad, dilation = steps[0][1], steps[1][1], steps[2][1]
    count, after = gradient.shape[3], gradient[:, :, 0].transpose(1, 2)
    seen = taps // stride
    needed = (count + dilation * (seen - 1)) * stride
    before = x[:, :, 0].transpose(1, 2)
    before = F.pad(before, (0, 0, pad, max(0, needed - pad - x.shape[3])))
    before = before[:, :needed].contiguous().unflatten(1, (-1, stride)).flatten(2)
    parts = [
        (before[:, at : at + count].transpose(1, 2) @ after).sum(dim=0)
        for at in range(0, seen * dilation, dilation)
    ]
    found = torch.stack(parts).unflatten(1, (stride, -1))  # (seen, stride, C, O)
    return found.flatten(0, 1).permute(2, 1, 0)[:, :, None]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, cast(weight, x), cast(bias, x))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        flat, seen = gradients[0].flatten(0, -2), x.flatten(0, -2)
        # A gradient that lies as its parameter does is not copied.
        swapped, found = not weight.is_contiguous(), None
        if of_weight:
            found = ((seen.T @ flat).T if swapped else flat.T @ seen).to(weight.dtype)
        return (
            (flat @ weight.to(x.dtype)).view_as(x) if of_x else None,
            found,
            flat.sum(dim=0).to(weight.dtype) if of_bias else None,
        )
