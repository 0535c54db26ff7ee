"""In which precision a network computes, and its products in a precision below fp32.

A network computes in the precision of its weights, or in that of autocast where this is on. Inside
it autocast is off: activations have the precision, and every layer brings its weights to that of
its input where it uses them. So training under autocast and ``model.bfloat16()`` are one path, and
no list of operations decides what happens. What has to be exact (moments, scores, positions) is
taken in fp32 where it is computed.

Products below fp32 keep their input and the weights as they are for backward, not the weights as
they were brought.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

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
    if _is_lowered(x):
        return _Convolution.apply(x, weight, bias, steps, transposed)
    return _convolved(x, weight, bias, steps, transposed)


def _is_lowered(x: Tensor) -> bool:
    half = x.dtype in (torch.bfloat16, torch.float16)
    return half and torch.is_grad_enabled() and not torch.compiler.is_compiling()


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
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        wanted = list(ctx.needs_input_grad[:3])
        if ctx.transposed and wanted[0] and _is_wrong(gradient, gradient.shape[1], ctx.steps):
            of_input = _convolved(gradient, weight, None, ctx.steps, False)
            return of_input, *_gradients(ctx, gradient, x, weight, [False, *wanted[1:]])[1:]
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
        flat = gradients[0].flatten(0, -2)
        return (
            (flat @ weight.to(x.dtype)).view_as(x) if of_x else None,
            (flat.T @ x.flatten(0, -2)).to(weight.dtype) if of_weight else None,
            flat.sum(dim=0).to(weight.dtype) if of_bias else None,
        )
