"""The compiled call of a model: the same numbers, and a way back where compiling fails."""

import logging
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from demucs_lightning import compiled
from demucs_lightning.compiled import Compiled, distance, inductor, reason


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv1d(2, 2, 3, padding=1)

    def forward(self, mixture: Tensor) -> Tensor:
        return self.inner(mixture).tanh()[:, None]


def gradients(call: Any, model: nn.Module, mixture: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(call(mixture).square().sum(), list(model.parameters())))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Without what torch says to itself."""
    return [each.getMessage() for each in caplog.records if each.name == compiled.log.name]


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_same_output_and_gradients(backend: str, caplog: pytest.LogCaptureFixture) -> None:
    model, mixture = Net(), torch.randn(1, 2, 50)
    call = Compiled(model, make=partial(inductor, backend=backend))
    torch.testing.assert_close(call(mixture), model(mixture))
    torch.testing.assert_close(gradients(call, model, mixture), gradients(model, model, mixture))
    assert call.call is not model
    assert said(caplog) == ["compile=true: on a CPU the first step takes minutes."]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_each_input_is_compiled_once() -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    call = Compiled(Net(), make=partial(inductor, backend=backend))
    for _ in range(3):
        call(torch.randn(1, 2, 50))
    assert len(graphs) == 1


class Layers(nn.Module):
    """A dozen of different widths, none of which torch compiles into the same graph as another."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Linear(n, n + 1) for n in range(2, 14))

    def layer(self, x: Tensor, number: int) -> Tensor:
        torch._dynamo.graph_break()
        return self.inner[number](x).tanh()

    def forward(self, x: Tensor) -> Tensor:
        for number in range(12):
            x = self.layer(x, number)
        return x


def test_every_layer_of_a_network_is_compiled() -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model, x = Layers(), torch.randn(3, 2)
    call = Compiled(model, make=partial(inductor, backend=backend))
    torch.testing.assert_close(call(x), model(x))
    linear = [graph for graph in graphs if "linear" in graph.code]
    assert len(linear) == 12


def fails_at_once(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("no compiler was found\nand much more")


def fails_in_backward(graph: Any, inputs: Any) -> Any:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            raise RuntimeError("no kernel for the gradient")

    return lambda *arguments: [Broken.apply(each) for each in graph.forward(*arguments)]


@pytest.mark.parametrize(
    ("backend", "why"),
    [(fails_at_once, "no compiler was found"), (fails_in_backward, "no kernel for the gradient")],
)
def test_what_fails_is_said_and_the_model_goes_on(
    backend: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    model, mixture = Net(), torch.randn(1, 2, 50)
    call = Compiled(model, make=partial(inductor, backend=backend))
    for _ in range(2):
        assert torch.equal(call(mixture), model(mixture))
        torch.testing.assert_close(
            gradients(call, model, mixture), gradients(model, model, mixture)
        )
    assert said(caplog)[1:] == [f"compile=true has no effect: {why}"]


def test_gradients_that_are_others_are_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    """As torch's own kernel for a norm gives them, where only one of two lies channels last."""

    def make(model: nn.Module, mixture: Tensor) -> Any:
        return lambda x: 2 * model(x)

    model, mixture = Net(), torch.randn(1, 2, 50)
    call = Compiled(model, make=make)
    assert torch.equal(call(mixture), model(mixture))
    assert said(caplog) == ["compile=true has no effect: its gradients are 300% off"]


def test_few_gradients_may_be_rounding() -> None:
    expected = [torch.ones(3), torch.full((2,), 2.0), torch.full((4,), 1e-20)]
    given = [1.01 * expected[0], 1.02 * expected[1], -3 * expected[2]]
    assert distance(given, expected) == pytest.approx(0.02, rel=1e-4)
    assert distance(given[:2], expected) == float("inf")


def test_memory_that_ends_is_no_failure_of_compiling() -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        def call(*_: Any) -> Any:
            raise torch.OutOfMemoryError("out of memory")

        return call

    with pytest.raises(torch.OutOfMemoryError):
        Compiled(Net(), make=partial(inductor, backend=backend))(torch.randn(1, 2, 50))


def test_the_trial_draws_no_numbers_of_the_first_step() -> None:
    model, mixture = nn.Sequential(Net(), nn.Dropout(0.5)), torch.randn(1, 2, 50)
    torch.manual_seed(3)
    plain = model(mixture)
    torch.manual_seed(3)
    assert torch.equal(Compiled(model, make=partial(inductor, backend="eager"))(mixture), plain)


def test_validation_does_not_try() -> None:
    call = Compiled(Net(), make=partial(inductor, backend="eager"))
    with torch.no_grad():
        call(torch.randn(1, 2, 50))
    assert not call.tried


def test_the_reason_is_the_first_line_of_the_first_error() -> None:
    error = RuntimeError("backend failed")
    error.__cause__ = ValueError("\n  g++ is missing\nsee ...")
    assert reason(error) == "g++ is missing"
    assert reason(RuntimeError()) == "RuntimeError"
