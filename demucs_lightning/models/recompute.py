"""What a training step keeps for its backward pass, and what it computes a second time instead.

The backward pass needs what the forward pass has computed. A part of a network that runs through
``recomputed`` keeps what enters it, and nothing else: backward computes the rest again when it gets
there. Loss and gradients are the same. A network's ``memory`` says what runs so:

- ``fast``: what takes next to no time. The wide tensors of a DConv branch, which follow from narrow
  ones; the weights of local attention, one for every pair of steps.
- ``balanced``: the two outermost layers on either side as well. They hold three quarters of all
  numbers of a U-Net, and a third of its operations. Of a transformer, all but the attention.
- ``low``: every layer, so that only what enters one is kept.

"Training Deep Nets with Sublinear Memory Cost" (Chen et al., 2016, arXiv:1604.06174).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

MEMORY = ("fast", "balanced", "low")
OUTER = 2  # layers, counted from the outermost, that ``balanced`` computes again


def recomputed(module: nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
    """``function(*inputs)``, a part of ``module``; in training backward keeps ``inputs`` of it.

    Every tensor that the function needs, but for parameters, must be among the inputs. Computing it
    again stops with the last tensor that backward asks for: what the function ends with, such as a
    convolution, runs once.
    """
    if not (module.training and torch.is_grad_enabled()) or is_transformed():
        return function(*inputs)
    random = any(getattr(part, "dropout", 0) for part in module.modules())
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=random)


def is_transformed() -> bool:
    """Whether torch.func differentiates, which knows nothing of tensors that are computed again."""
    return getattr(torch._C, "_functorch").peek_interpreter_stack() is not None  # noqa: B009


class Recomputing(nn.Module):
    """A network of layers that can be computed again, as its ``memory`` says, which may change."""

    def __init__(self, memory: str) -> None:
        super().__init__()
        self.memory = memory

    @property
    def memory(self) -> str:
        """One of MEMORY; to set another raises ValueError."""
        return self._memory

    @memory.setter
    def memory(self, memory: str) -> None:
        if memory not in MEMORY:
            raise ValueError(f"memory is {memory!r}: it must be fast, balanced or low.")
        self._memory = memory

    def layer(self, depth: int, layer: nn.Module, *inputs: Any) -> Any:
        """``layer(*inputs)``, of the layer that is number ``depth`` from the outside."""
        again = self.memory == "low" or (self.memory == "balanced" and depth < OUTER)
        return recomputed(layer, layer, *inputs) if again else layer(*inputs)
