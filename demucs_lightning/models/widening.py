"""The wide end of a DConv branch: a convolution of kernel 1, a norm, a gate, and the sum with what
enters the branch.

The wide output of the convolution is never there: the norm has one group, so that it is one shift
and one factor for each row, and these follow from the mean and covariance of the few channels that
the convolution widens. They are applied to these channels, beside which three more columns carry
what shift and biases add; what is left is one product for each half of the output.

On a GPU all of a branch behind its first convolution is one function whose backward computes it
again from that convolution's output, and stops before the wide sum.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from demucs_lightning.models.norms import affine, normed
from demucs_lightning.models.precision import cast, exact, linear, without_autocast

BLOCK = 512  # steps that are added up one after the other
ALIGNED = 8  # numbers of half precision that tensor cores like to find at once


class Wide(NamedTuple):
    """``(2C, H)`` and ``(2C,)`` of a convolution of kernel 1, weight and bias ``(2C,)`` of a norm,
    and the gain ``(C,)`` of the first half."""

    weight: Tensor
    bias: Tensor
    factor: Tensor
    shift: Tensor
    gain: Tensor


def normed_halves(x: Tensor, wide: Wide, eps: float) -> tuple[Tensor, Tensor]:
    """The two halves of the channels of a convolution and a norm of ``x (R, T, H)``, the first
    times a gain: ``(R, T, H')`` each."""
    mean, rate = moments(x, wide.weight, wide.bias, eps)
    columns = torch.stack([rate, -mean * rate, torch.ones_like(rate)], dim=-1)
    columns = columns.to(x.dtype)[:, None].expand(-1, x.shape[1], -1)
    x = torch.cat([(x * rate[:, None, None]).to(x.dtype), columns], dim=-1)
    value, gate = weights_of_halves(wide)
    return linear(x, value), linear(x, gate)


def weights_of_halves(wide: Wide, *unused: Tensor) -> tuple[Tensor, Tensor]:
    """Of the columns of ``normed_halves``, ``(H', H + 3)`` each, and of ``unused`` ones."""
    weight, bias, factor, shift, gain = wide
    weight = torch.cat([weight, bias[:, None]], dim=1) * factor[:, None]
    weight = torch.cat([weight, factor[:, None], shift[:, None], *unused], dim=1)
    value, gate = weight.chunk(2)
    return gain[:, None] * value, gate


def moments(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean, and 1 over the deviation, of all that ``weight (C, H)`` and ``bias`` make of each row
    of ``x (R, T, H)``: ``(R,)`` each, in fp32 or better.

    With y = Wx + b and averages over time and output channels: E[y] = E_c[W E[x] + b], and Var[y] =
    tr(WᵀW Cov[x]) / C + Var_c[W E[x] + b].
    """
    with without_autocast(x):
        x = x.to(exact(x))
        weight, bias = cast(weight, x), cast(bias, x)
        mean = x.mean(dim=1)
        if x.device.type == "cpu":
            covariance = products(x) / x.shape[1] - mean[:, :, None] * mean[:, None]
        else:
            covariance = products(x - mean[:, None]) / x.shape[1]
        centres = F.linear(mean, weight, bias)
        spread = (covariance * (weight.T @ weight)).sum(dim=(1, 2)) / len(weight)
        variance = spread.clamp(min=0) + centres.var(dim=1, correction=0)
        return centres.mean(dim=1), (variance + eps).rsqrt()


def products(x: Tensor) -> Tensor:
    """Sums over time of the products of all channels, ``(R, T, H)`` to ``(R, H, H)``.

    In blocks: sums over 100,000 steps, one after the other, are 1e-5 off in fp32. On GPUs products
    in TF32 may be allowed, which has 10 bits: x has to be centred there, so that what they lose is
    a part of the spread and not of the mean.
    """
    if x.shape[1] > BLOCK:
        padded = F.pad(x, (0, 0, 0, -x.shape[1] % BLOCK))
        blocks = padded.unflatten(1, (-1, BLOCK)).flatten(0, 1)
        return products(blocks).view(x.shape[0], -1, *blocks.shape[2:], blocks.shape[2]).sum(dim=1)
    return x.transpose(1, 2) @ x


def widened(x: Tensor, y: Tensor, wide: Wide, eps: float, *narrow: Any) -> Tensor:
    """``x (R, T, C)`` and what ``y (R, T, H)`` adds to it: through ``wide``, and before this a norm
    and an activation where there are ``narrow`` ones."""

    def enter(y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        wide, of_norm = Wide(*parameters[:5]), parameters[5:]
        if narrow:
            norm, activation = narrow
            y = activation(normed(y, of_norm[0], of_norm[1], norm.num_groups, norm.eps))
        # What they are doesn't matter, as the columns are zeros.
        unused = wide.shift.detach()[:, None].expand(-1, -(y.shape[2] + 3) % ALIGNED)
        return y, torch.cat(weights_of_halves(wide, unused)).to(y.dtype)

    of_norm = (narrow[0].weight, narrow[0].bias) if narrow else ()
    return Widened.apply(x, y, enter, eps, *wide, *of_norm)[0]


class Widened(torch.autograd.Function):
    """``x (R, T, C)`` plus what a branch makes of ``y``.

    ``enter(y, *parameters)`` gives the few channels ``(R, T, H)`` that are widened, and the weights
    ``(2C, K)`` of both halves; the first two parameters are the convolution's. What follows the sum
    in the output is what backward needs of the moments.
    """

    @staticmethod
    def forward(
        x: Tensor, y: Tensor, enter: Callable[..., Any], eps: float, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        y, weights = enter(y, *parameters)
        found = centred_moments(y, parameters[0], parameters[1], eps)
        (value, gate), _ = _halves(weights, y, *found[:2])
        return torch.addcmul(x, value, gate.sigmoid_()), *found

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, y, ctx.enter, _, *parameters = inputs
        ctx.save_for_backward(y, *output[1:], *parameters)
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        y, *saved = ctx.saved_tensors
        found, parameters = saved[:5], saved[5:]
        with without_autocast(y):
            inputs = [each.detach().requires_grad_() for each in (y, *parameters)]
            with torch.enable_grad():
                entered = ctx.enter(*inputs)
            narrow, weights = (each.detach() for each in entered)
            *of_halves, of_weights = _of_halves(gradients[0], weights, narrow, *found[:2])
            of_narrow, *of_product = _of_moments(narrow, parameters[0], found, *of_halves)
            of_y, *others = torch.autograd.grad(entered, inputs, [of_narrow, of_weights])
        summed = (each + more for each, more in zip(others, of_product, strict=False))
        return gradients[0], of_y, None, None, *summed, *others[2:]


def centred_moments(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
    """``moments``, without gradients; then the mean of x, its covariance times T, and the mean over
    time for each output channel, which ``_of_moments`` takes."""
    mean = x.mean(dim=1, dtype=exact(x))
    weight, bias = cast(weight, mean), cast(bias, mean)
    covariance = products(x - mean[:, None])
    centres = F.linear(mean, weight, bias)
    variance, centre = torch.var_mean(centres, dim=1, correction=0)
    spread = covariance.flatten(1) @ (weight.T @ weight).flatten()
    variance = variance.add_(spread, alpha=1 / (x.shape[1] * len(weight)))
    return centre, variance.add_(eps).rsqrt_(), mean, covariance, centres


def _of_moments(
    x: Tensor,
    weights: Tensor,
    found: list[Tensor],
    of_scaled: Tensor,
    of_centre: Tensor,
    of_rate: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, given those of x times the rate and of both moments."""
    centre, rate, mean, covariance, centres = found
    weight, (steps, outputs) = cast(weights, mean), (x.shape[1], len(weights))
    of_variance = rate.pow(3).mul_(of_rate).mul_(-1 / outputs)[:, None]  # times 2 / C
    of_centres = (centres - centre[:, None]).mul_(of_variance)
    of_centres = of_centres.add_(of_centre[:, None], alpha=1 / outputs)
    of_variance = of_variance / steps
    of_shared = (of_variance[:, 0] @ covariance.flatten(1)).view(covariance.shape[1:])
    of_weight = torch.addmm(of_centres.T @ mean, weight, of_shared)
    shared = weight.T @ weight
    of_mean = (of_centres @ weight).div_(steps).addcmul_(of_variance, mean @ shared, value=-1)
    of_x = affine(x @ shared.to(x.dtype), of_variance.expand_as(of_mean), of_mean)
    of_x = torch.addcmul(of_x, rate[:, None, None], of_scaled, out=of_x)
    return of_x, of_weight.to(weights.dtype), of_centres.sum(dim=0).to(weights.dtype)


def _halves(
    weights: Tensor, x: Tensor, centre: Tensor, rate: Tensor
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Both halves of the output, and the columns ``(R, T, K)`` that they are made of."""
    width = x.shape[2]
    own = rate.new_zeros(len(rate), weights.shape[1] - width)
    own[:, 0] = rate
    own[:, 1].addcmul_(centre, rate, value=-1)
    own[:, 2].fill_(1)
    columns = x.new_empty(*x.shape[:2], weights.shape[1])
    torch.mul(x, rate[:, None, None], out=columns[..., :width])
    columns[..., width:] = own[:, None]
    value, gate = (F.linear(columns, half) for half in weights.chunk(2))
    return (value, gate), columns


def _of_halves(
    gradient: Tensor, weights: Tensor, x: Tensor, centre: Tensor, rate: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x times the rate, of both moments and of the weights, given that of the sum."""
    (value, gate), columns = _halves(weights, x, centre, rate)
    gate, gradient = gate.sigmoid_(), gradient.contiguous()
    of_gate = torch.ops.aten.sigmoid_backward(value.mul_(gradient), gate).flatten(0, 1)
    of_value = gate.mul_(gradient).flatten(0, 1)
    of_weights = torch.cat([each.T @ columns.flatten(0, 1) for each in (of_value, of_gate)])
    for_value, for_gate = weights.chunk(2)
    of_columns = torch.addmm(of_value @ for_value, of_gate, for_gate).view_as(columns)

    width, dtype = x.shape[2], exact(x)
    of_scaled = of_columns[..., :width]
    of_rate, of_shift = of_columns[..., width : width + 2].sum(dim=1, dtype=dtype).unbind(1)
    of_rate = (of_scaled * x.to(dtype)).sum(dim=(1, 2)).add_(of_rate)
    of_rate = of_rate.addcmul_(centre, of_shift, value=-1)
    return of_scaled, (rate * of_shift).neg_(), of_rate, of_weights
