"""The network of a training step through ``torch.compile``, for as long as that works.

What is compiled is a call of the model, not the model: parameters, names and checkpoints stay, and
validation, whose lengths differ, is not compiled. The first training step goes forward and backward
once more, to find what fails before anything depends on it. If something does, one line says what,
and the run goes on without.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

LAYERS = 64  # of one function, each compiled for its own widths; torch gives up after eight


class Compiled:
    """Called like ``model``, with inputs of one shape; ``backend`` is that of ``torch.compile``.

    Not a module, so that it can be an attribute of one without doubling the model's weights.
    """

    def __init__(self, model: nn.Module, *, backend: str | Callable[..., Any] = "inductor") -> None:
        self.model, self.tried = model, False
        torch.compiler.config.recompile_limit = LAYERS
        self.call: Any = torch.compile(model.forward, backend=backend, dynamic=False)

    def __call__(self, mixture: Tensor) -> Tensor:
        if not self.tried and torch.is_grad_enabled():
            self.tried = True
            self._try(mixture)
        return self.call(mixture)

    def _try(self, mixture: Tensor) -> None:
        if mixture.device.type == "cpu":
            log.warning("compile=true: on a CPU the first step takes minutes.")
        weights = [each for each in self.model.parameters() if each.requires_grad]
        devices = [mixture.device] if mixture.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):  # the first step is to draw what it would have
                estimates = self.call(mixture)
                torch.autograd.grad(estimates.float().mean(), weights, allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ImportError) as error:  # torch's own for compilers are RuntimeErrors
            log.warning("compile=true has no effect: %s", reason(error))
            self.call = self.model


def reason(error: BaseException) -> str:
    """The first line that says something, of the error that was at the bottom of it."""
    while inner := getattr(error, "inner_exception", None) or error.__cause__:
        error = inner
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__)
