"""Norms as they are written out for GPUs: beside torch's own, and what they keep for backward."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from demucs_lightning.models import layout, norms

SHAPE, EPS = (3, 50, 12), 1e-5


@pytest.fixture
def gpu(monkeypatch):
    """What is written for GPUs, on this machine's CPU."""
    monkeypatch.setattr(layout, "on_gpu", lambda x: True)
    monkeypatch.setattr(norms, "LONG", 1)


def given(dtype: torch.dtype) -> list[Tensor]:
    """An input that is not centred, a weight and a bias."""
    generator = torch.Generator().manual_seed(0)
    x = 2 + torch.randn(SHAPE, generator=generator)
    weight, bias = (torch.randn(SHAPE[2], generator=generator) for _ in range(2))
    wide = torch.promote_types(dtype, torch.float32)
    return [x.to(dtype).requires_grad_(), *(w.to(wide).requires_grad_() for w in (weight, bias))]


def passes(function, inputs: list[Tensor], *options) -> list[Tensor]:
    y = function(*inputs, *options)
    direction = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    return [y.detach(), *torch.autograd.grad(y, inputs, direction.to(y.dtype))]


def torchs(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    return F.group_norm(x.transpose(1, 2), groups, weight, bias, EPS).transpose(1, 2)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.bfloat16, 0.005)],
)
def test_values_and_gradients_are_those_of_torch(dtype, tolerance, groups):
    """In fp64, of the same input; parameters and their gradients are in fp32 or better."""
    inputs = given(dtype)
    found = passes(norms.normed, inputs, groups, EPS)
    assert [each.dtype for each in found] == [dtype, *(each.dtype for each in inputs)]
    exact = [each.detach().double().requires_grad_() for each in inputs]
    for own, theirs in zip(found, passes(torchs, exact, groups), strict=True):
        assert (own - theirs).norm() < tolerance * theirs.norm()


@pytest.mark.parametrize("groups", [1, 3])
def test_the_gradient_is_that_of_differences(groups):
    inputs = [each[..., :6].detach().requires_grad_() for each in given(torch.float64)]
    inputs[0] = inputs[0][:2, :4].detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *each: norms.WrittenOut.apply(*each, groups, EPS)[0],
        inputs,
        check_undefined_grad=False,
    )


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 4])
def test_backward_keeps_the_input_and_little_else(groups, dtype):
    (x, weight, bias), kept = given(dtype), []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda nothing: nothing):
        norms.normed(x, weight, bias, groups, EPS)
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    assert sizes.pop(x.data_ptr()) == x.nbytes
    assert sum(sizes.values()) <= 4 * (SHAPE[2] + 2 * SHAPE[0] * groups)


@pytest.mark.usefixtures("gpu")
def test_computing_again_changes_nothing():
    inputs = given(torch.float32)
    once = passes(norms.normed, inputs, 1, EPS)
    again = passes(
        lambda *each: checkpoint(norms.normed, *each, use_reentrant=False), inputs, 1, EPS
    )
    assert all(map(torch.equal, once, again))


@pytest.mark.usefixtures("gpu")
def test_many_or_short_rows_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(norms, "LONG", 600)

    def written_out(count: int, steps: int) -> bool:
        norm = norms.GroupNorm(1, 12)
        y = norms.row_norm(norm, torch.randn(count, steps, 12))
        assert y.grad_fn is not None
        return "WrittenOut" in y.grad_fn.name()

    assert written_out(2, 50)
    assert not written_out(2, 49)
    assert not written_out(300, 50)


def test_bins_of_channels_that_lie_last_stay_so(gpu):
    norm = norms.GroupNorm(4, 8)
    x = layout.channels_last(torch.randn(2, 8, 3, 5))
    y = norm(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, F.group_norm(x, 4, norm.weight, norm.bias, norm.eps))
