"""The network of a training step in a faster form, for as long as that works.

``compile=true`` is ``torch.compile``; ``compile=cudagraphs`` records what the network does, forward
and backward, and replays it (``graphs.py``). Either way what changes is a call of the model, not
the model: parameters, names and checkpoints stay, and validation, whose lengths differ, is as it
was. The first training step is run both ways before anything depends on it. If the faster one
fails, or its gradients are others, one line says what, and the run goes on without.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from demucs_lightning.graphs import Graphed
from demucs_lightning.models.precision import without_autocast

log = logging.getLogger(__name__)

LAYERS = 64  # of one function, each compiled for its own widths; torch gives up after eight
FAR = 0.1  # of a gradient, by which it may differ: in bf16 the two are 0.02 apart

Call = Callable[[Tensor], Tensor]
Make = Callable[[nn.Module, Tensor], Call]


def inductor(model: nn.Module, mixture: Tensor, backend: Any = "inductor") -> Call:
    if mixture.device.type == "cpu":
        log.warning("compile=true: on a CPU the first step takes minutes.")
    torch.compiler.config.recompile_limit = LAYERS
    return torch.compile(model.forward, backend=backend, dynamic=False)


def cudagraphs(model: nn.Module, mixture: Tensor) -> Call:
    if mixture.device.type != "cuda":
        raise RuntimeError("only a CUDA GPU has graphs")
    return Graphed(model, mixture)


MAKERS: dict[str, Make] = {"true": inductor, "cudagraphs": cudagraphs}


class Compiled:
    """Called like ``model``, with inputs of one shape; ``kind`` is one of MAKERS, or ``make`` says
    how the faster call is made from the model and a first input.

    Not a module, so that it can be an attribute of one without doubling the model's weights.
    """

    def __init__(self, model: nn.Module, kind: str = "true", *, make: Make | None = None) -> None:
        self.model, self.kind, self.make = model, kind, make or MAKERS[kind]
        self.call: Call = model
        self.tried = False

    def __call__(self, mixture: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.model(mixture)
        if not self.tried:
            self.tried = True
            self._try(mixture)
        return self.call(mixture)

    def _try(self, mixture: Tensor) -> None:
        on_gpu = mixture.device.type == "cuda"
        drawn = partial(torch.cuda.get_rng_state, mixture.device) if on_gpu else torch.get_rng_state
        try:
            # The first step is to draw what it would have.
            with torch.random.fork_rng([mixture.device] if on_gpu else []):
                before = drawn()
                expected = self._gradients(self.model, mixture)
                draws = not torch.equal(before, drawn())
                call = self.make(self.model, mixture)
                given = self._gradients(call, mixture)
            apart = 0.0 if draws else distance(given, expected)
            if not apart < FAR:
                raise RuntimeError(f"its gradients are {apart:.0%} off")
            self.call = call
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ImportError) as error:  # torch's own for compilers are RuntimeErrors
            log.warning("compile=%s has no effect: %s", self.kind, reason(error))

    def _gradients(self, call: Call, mixture: Tensor) -> list[Tensor]:
        weights = [each for each in self.model.parameters() if each.requires_grad]
        estimates = call(mixture)
        with without_autocast(mixture):  # as a step's backward pass
            found = torch.autograd.grad(
                estimates.float().square().mean(), weights, allow_unused=True
            )
        return [each for each in found if each is not None]


def distance(given: list[Tensor], expected: list[Tensor]) -> float:
    """By how much of itself the gradient of a weight is off, for the median weight: some are next
    to nothing and rounding, and the sum over all is that of the last layers."""
    if len(given) != len(expected):
        return float("inf")
    pairs = zip(given, expected, strict=True)
    off = [(a - b).float().norm() / b.float().norm().clamp(min=1e-30) for a, b in pairs]
    return torch.stack(off).median().item()


def reason(error: BaseException) -> str:
    """The first line that says something, of the error that was at the bottom of it."""
    while inner := getattr(error, "inner_exception", None) or error.__cause__:
        error = inner
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__)
