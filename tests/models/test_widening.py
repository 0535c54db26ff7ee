"""The wide end of a DConv branch: what is written for GPUs beside what runs on CPUs, and what TF32
does to its moments."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from demucs_lightning.models import layout, norms, widening
from demucs_lightning.models.dconv import DConv
from demucs_lightning.models.norms import GroupNorm
from demucs_lightning.models.widening import Wide, widened


def doubles(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randn(shape, generator=generator).double() for shape in shapes)
    return [each.requires_grad_() for each in drawn]


@pytest.mark.parametrize("narrow", [(), (GroupNorm(1, 3).double(), nn.GELU())])
def test_the_gradient_is_that_of_differences(narrow):
    """Of both inputs and all parameters, those of the narrow norm among them."""
    x, y, *wide = doubles((2, 5, 4), (2, 5, 3), (8, 3), (8,), (8,), (8,), (4,))
    own = [p for module in narrow for p in module.parameters()]

    def run(x: Tensor, y: Tensor, *parameters: Tensor) -> Tensor:
        return widened(x, y, Wide(*parameters[:5]), 1e-5, *narrow)

    assert torch.autograd.gradcheck(run, [x, y, *wide, *own], check_undefined_grad=False)


def branches(dtype: torch.dtype, **kwargs: Any) -> list[Tensor]:
    """Output and gradients of a DConv whose norms are not trivial, on three bins."""
    torch.manual_seed(0)
    module = DConv(16, init=0.5, **kwargs)
    for parameter in module.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    module.to(torch.float64 if dtype == torch.float64 else torch.float32)
    x, direction = (layout.channels_last(torch.randn(2, 16, 3, 60).to(dtype)) for _ in range(2))
    y = module(x.requires_grad_())
    # A key's bias has no effect: its gradient is rounding.
    learning = [p for name, p in module.named_parameters() if not name.endswith("key.bias")]
    return [y.detach(), *torch.autograd.grad(y, [x, *learning], direction)]


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs)


@pytest.mark.parametrize("kwargs", [{}, {"attn": True, "lstm": True}, {"gelu": False, "depth": -1}])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)],
)
def test_a_branch_on_a_gpu_is_that_on_a_cpu(dtype, tolerance, kwargs, monkeypatch):
    """In bf16, both beside fp64."""
    expected = branches(torch.float64 if dtype == torch.bfloat16 else dtype, **kwargs)
    on_cpu = distance(branches(dtype, **kwargs), expected)
    monkeypatch.setattr(layout, "on_gpu", lambda x: True)
    monkeypatch.setattr(norms, "LONG", 1)
    found = branches(dtype, **kwargs)
    assert distance(found, expected) < max(tolerance, 1.2 * on_cpu)
    assert on_cpu < 0.1


@pytest.mark.parametrize("width", [3, 5, 13])
def test_columns_are_filled_up_without_a_trace(width, monkeypatch):
    x, y, *wide = doubles((2, 9, 4), (2, 9, width), (8, width), (8,), (8,), (8,), (4,))
    seen, results = [], []

    def noting(columns: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
        seen.extend([] if bias else [columns.shape[2]])
        return product(columns, weight, *bias)

    product = F.linear
    monkeypatch.setattr(widening.F, "linear", noting)
    for aligned in (1, 8):
        monkeypatch.setattr(widening, "ALIGNED", aligned)
        results.append(widened(x, y, Wide(*wide), 1e-5))
    torch.testing.assert_close(*results, rtol=1e-14, atol=1e-14)
    assert seen == [width + 3] * 2 + [8 * ((width + 10) // 8)] * 2


class Rounding(TorchFunctionMode):
    """Products as a GPU takes them in TF32: of factors with 10 bits behind the first."""

    PRODUCTS = (torch.Tensor.matmul, torch.matmul, torch.Tensor.__matmul__, F.linear)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.PRODUCTS:
            args = [rounded(args[0]), rounded(args[1]), *args[2:]]
        return func(*args, **(kwargs or {}))


def rounded(x: Tensor) -> Tensor:
    bits = x.float().contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize(("level", "limit"), [(0.3, 5e-5), (1000.0, 0.03)])
def test_moments_of_centred_numbers_bear_tf32(level, limit):
    """However far the mean is from 0: beside it, the difference of two large numbers is lost. What
    a norm and GELU leave has a mean of half its deviation."""
    generator = torch.Generator().manual_seed(0)
    x = level + torch.randn(2, 700, 12, generator=generator)
    weight, bias = torch.randn(48, 12, generator=generator), torch.randn(48, generator=generator)
    weight = weight - weight.mean(dim=1, keepdim=True)  # so that only the spread counts
    _, exact = widening.moments(x.double(), weight, bias, 1e-5)

    def error(rate: Tensor) -> float:
        return float((rate / exact - 1).abs().max())

    with Rounding():
        found = error(widening.centred_moments(x, weight, bias, 1e-5)[1])
        by_difference = error(widening.moments(x, weight, bias, 1e-5)[1])
    assert found < limit
    assert error(widening.centred_moments(x, weight, bias, 1e-5)[1]) < 1e-5
    assert by_difference > 0.2 or level < 1
