"""Norms of groups of channels, over all steps of a row or of an example.

For few and long rows on a GPU they are written out here, as for several groups. torch's LayerNorm
has one block of threads for each row, of which there may be four with millions of numbers each, and
its GroupNorm copies channels that lie last. Here the statistics are reductions that occupy all of
the GPU, in fp32 or better, and the rest is one pass. Backward has its closed form, and keeps the
input and two numbers for each group ("Group Normalization", Wu and He, 2018, arXiv:1803.08494).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from demucs_lightning.models.layout import alone_on_gpu
from demucs_lightning.models.precision import cast, exact

BUSY = 256  # rows that occupy a GPU with one block of threads each
LONG = 2**17  # numbers of a row that are too many for one block


class GroupNorm(nn.GroupNorm):
    """Over ``(B, H, F, N)``, statistics over all bins and steps of an example."""

    def forward(self, input: Tensor) -> Tensor:
        if alone_on_gpu(input):
            steps = input.permute(0, 2, 3, 1)
            return row_norm(self, steps.flatten(1, 2)).view(steps.shape).permute(0, 3, 1, 2)
        weight, bias = cast(self.weight, input), cast(self.bias, input)
        return F.group_norm(input, self.num_groups, weight, bias, self.eps)


def row_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """A GroupNorm over ``x (R, T, H)``, whose channels lie last, for each row on its own."""
    return normed(x, norm.weight, norm.bias, norm.num_groups, norm.eps)


def normed(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """``row_norm``, given what the norm is made of."""
    few_and_long = len(x) < BUSY and x[0].numel() >= LONG
    if alone_on_gpu(x) and (groups > 1 or few_and_long):
        return WrittenOut.apply(x, weight, bias, groups, eps)[0]
    weight, bias = cast(weight, x), cast(bias, x)
    if groups > 1:
        return F.group_norm(x.transpose(1, 2), groups, weight, bias, eps).transpose(1, 2)
    # A row lies in one piece: LayerNorm over it, with the weights of its channels again and again,
    # is one pass, and exact. GroupNorm would go through it channel by channel, or add up 100,000
    # steps one after the other.
    weight, bias = weight.repeat(x.shape[1]), bias.repeat(x.shape[1])
    return F.layer_norm(x.flatten(1), (len(weight),), weight, bias, eps).view_as(x)


def affine(x: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """``x (R, T, H)`` times a factor plus a shift, ``(R, H)`` each: in one pass, as exact as these
    are, and rounded to the precision of x. Without gradients."""
    return torch.addcmul(shift[:, None], factor[:, None], x, out=torch.empty_like(x))


class WrittenOut(torch.autograd.Function):
    """``normed``; mean and 1 over the deviation ``(R, G)`` of the G groups come along."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        grouped = x.unflatten(2, (groups, -1))
        variance, mean = torch.var_mean(grouped.to(exact(x)), dim=(1, 3), correction=0)
        rate = variance.add_(eps).rsqrt_()
        factor = rate[..., None] * weight.view(groups, -1)
        shift = torch.addcmul(bias.view(groups, -1), mean[..., None], factor, value=-1)
        return affine(x, factor.flatten(1), shift.flatten(1)), mean, rate

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[:2], *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, *statistics = ctx.saved_tensors
        mean, rate = (each[..., None] for each in statistics)  # (R, G, 1)
        gradient, dtype, groups = gradients[0], exact(x), mean.shape[1]
        count = x.shape[1] * x.shape[2] // groups
        # Sums over time, (R, G, H / G), of the gradient and of its product with the normed x.
        of_bias = gradient.sum(dim=1, dtype=dtype).unflatten(1, (groups, -1))
        of_weight = (gradient * x.to(dtype)).sum(dim=1).view_as(of_bias)
        of_weight = torch.addcmul(of_weight, mean, of_bias, value=-1).mul_(rate)
        # The gradient that enters the norm, less its mean and its projection on the normed x.
        factor = rate * weight.view(groups, -1)
        slope = (factor * of_weight).sum(dim=2, keepdim=True).mul_(rate).div_(-count)
        shift = (factor * of_bias).sum(dim=2, keepdim=True).div_(-count)
        shift = shift.addcmul_(slope, mean, value=-1).expand_as(factor).flatten(1)
        of_x = affine(x, slope.expand_as(factor).flatten(1), shift)
        of_x = torch.addcmul(of_x, factor.flatten(1)[:, None], gradient, out=of_x)
        weights = (each.sum(dim=0).flatten().to(weight.dtype) for each in (of_weight, of_bias))
        return of_x, *weights, None, None
