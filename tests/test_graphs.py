"""A step as graphs: what is recorded is replaced by an imitation that writes in place, as they do.

Only `graphs.Recorder` needs a GPU; what reads and writes where, and when, is the same here.
"""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from demucs_lightning import compiled
from demucs_lightning.compiled import Compiled
from demucs_lightning.graphs import Graphed, Replay
from demucs_lightning.models import HDemucs
from tests.conftest import SOURCES

Made = tuple[Any, Replay]


def in_place(run: Callable[[], Any]) -> Made:
    """Stands for a CUDA graph: what runs again, with autocast as it was while recorded, puts its
    results where the first ones lie.
    """
    first, lowered = run(), torch.is_autocast_enabled("cpu")

    def replay() -> None:
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            again = run()
        places, news = ((each,) if isinstance(each, Tensor) else each for each in (first, again))
        for place, new in zip(places, news, strict=True):
            if place is not None:
                place.data.copy_(new)

    return first, replay


class Replaying(Graphed):
    """With the computation itself as what is replayed, which needs it for each backward pass."""

    def __init__(self, model: nn.Module, mixture: Tensor) -> None:
        super().__init__(model, mixture, in_place)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return HDemucs(SOURCES, channels=4, memory="low").train()


def trained(call: Callable[[Tensor], Tensor], model: nn.Module, *, micro: int = 1) -> list[Tensor]:
    """The weights after three steps on different batches, each of `micro` backward passes."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        for _ in range(micro):
            mixture = torch.randn(1, 2, 8192, generator=generator)
            loss = call(mixture).abs().mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return [each.detach().clone() for each in model.parameters()]


@pytest.mark.parametrize("micro", [1, 3])
def test_training_is_that_of_the_network(network: nn.Module, micro: int) -> None:
    state = {key: value.clone() for key, value in network.state_dict().items()}
    expected = trained(network, network, micro=micro)
    network.load_state_dict(state)
    given = trained(Replaying(network, torch.zeros(1, 2, 8192)), network, micro=micro)
    for one, other in zip(given, expected, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(expected[0], next(iter(state.values())))


def test_gradients_that_are_still_wanted_are_kept(network: nn.Module) -> None:
    call = Replaying(network, torch.zeros(1, 2, 8192))
    weight = next(network.parameters())
    call(torch.randn(1, 2, 8192)).square().mean().backward()
    first = weight.grad
    assert first is not None
    before = first.clone()
    call(torch.randn(1, 2, 8192)).square().mean().backward()
    assert weight.grad is not None
    assert not torch.equal(weight.grad, before)
    second = weight.grad - before
    assert second.norm() > 0.01 * before.norm()


def test_bf16_is_recorded_in_bf16_and_goes_back_outside_of_autocast(network: nn.Module) -> None:
    mixture = torch.randn(1, 2, 8192)
    weights = list(network.parameters())

    def gradients(call: Callable[[Tensor], Tensor]) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            estimates = call(mixture)
        return list(torch.autograd.grad(estimates.float().abs().mean(), weights))

    with torch.autocast("cpu", torch.bfloat16):
        call = Replaying(network, torch.zeros(1, 2, 8192))
    for one, other in zip(gradients(call), gradients(network), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_another_shape_goes_through_the_network(network: nn.Module) -> None:
    call, mixture = Replaying(network, torch.zeros(1, 2, 8192)), torch.randn(2, 2, 4096)
    assert torch.equal(call(mixture), network(mixture))


def test_compile_takes_graphs_that_agree(network: nn.Module) -> None:
    call = Compiled(network, "cudagraphs", make=Replaying)
    mixture = torch.randn(1, 2, 8192)
    assert torch.equal(call(mixture), network(mixture))
    assert isinstance(call.call, Replaying)


def test_what_was_recorded_wrong_is_not_taken(
    network: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    """A graph that does not see the batch: it replays the first."""

    def stale(run: Callable[[], Any]) -> Made:
        return run(), lambda: None

    def make(model: nn.Module, mixture: Tensor) -> Graphed:
        return Graphed(model, torch.zeros_like(mixture), stale)

    call = Compiled(network, "cudagraphs", make=make)
    mixture = torch.randn(1, 2, 8192)
    assert torch.equal(call(mixture), network(mixture))
    assert "compile=cudagraphs has no effect: its gradients are" in caplog.text


def test_without_a_gpu_the_network_runs_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model, mixture = nn.Conv1d(2, 2, 3), torch.randn(1, 2, 50)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(Compiled(model, "cudagraphs")(mixture), model(mixture))
    said = [each.getMessage() for each in caplog.records if each.name == compiled.log.name]
    assert said == ["compile=cudagraphs has no effect: only a CUDA GPU has graphs"]
