"""Exponential moving average of a model's weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

Places = list[tuple[str, dict[str, Any], str]]


class ModelEMA:
    """Average of the floating-point part of a state dict over the calls of `update`.

    A call gives the model the weight 1 / (1 + decay + decay² + ...), as many terms as there were
    calls: every average is over models that were seen, the first is the first model. With `unbias`
    off that weight is 1 - decay, and the average starts from the model given to `start`.

    `device` holds the average; None: where the model is.
    """

    def __init__(self, decay: float, unbias: bool = True, device: torch.device | str | None = None):
        if not 0 <= decay < 1:
            raise ValueError(f"A decay of ema is {decay}: it must be at least 0 and below 1.")
        self.decay, self.unbias, self.device = decay, unbias, device
        self.count = 0.0
        self.state: dict[str, Tensor] = {}

    def start(self, model: nn.Module) -> None:
        """Forget what was averaged and begin at the weights of `model`."""
        self.count = 0.0
        self.state = {
            key: value.to(self.device or value.device, copy=True)
            for key, value in _floats(model).items()
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights of `model` into the average."""
        if not self.state:
            self.start(model)
        weight = 1 - self.decay
        if self.unbias:
            self.count = self.count * self.decay + 1
            weight = 1 / self.count
        values = _current(model)
        averages = [self.state[key] for key in values]
        news = [value.to(average) for value, average in zip(values.values(), averages, strict=True)]
        torch._foreach_lerp_(averages, news, weight)  # as torch.optim.swa_utils: one kernel for all

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Within the block, `model` has the averaged weights; its own come back after it."""
        own = {key: value.clone() for key, value in _floats(model).items()}
        try:
            model.load_state_dict(self.state, strict=False)
            yield
        finally:
            model.load_state_dict(own, strict=False)

    def state_dict(self) -> dict[str, Any]:
        """The average and how much it has seen; the tensors are shared, not copied."""
        return {"state": self.state, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.count = state["count"]
        self.state = {
            key: value.to(self.device or value.device, copy=True)
            for key, value in state["state"].items()
        }


def _current(model: nn.Module) -> dict[str, Tensor]:
    """`_floats`, read from where the modules keep it: a state dict takes milliseconds to build,
    at every step. What is put in another's place there is seen; modules that come later are not.
    """
    if model not in _places:
        _places[model] = _find(model)
    places = _places[model]
    if places is None:
        return _floats(model)
    return {key: owner[name].detach() for key, owner, name in places}


_places: WeakKeyDictionary[nn.Module, Places | None] = WeakKeyDictionary()


def _find(model: nn.Module) -> Places | None:
    """The key and place of every floating-point tensor of the state dict; None where a module makes
    its own, as those that FSDP has divided do.
    """
    places: Places = []
    for prefix, module in model.named_modules(remove_duplicate=False):
        own = type(module)._save_to_state_dict is not nn.Module._save_to_state_dict
        if own or module._state_dict_hooks or module._state_dict_pre_hooks:
            return None
        for owner in (module._parameters, module._buffers):
            for name, value in owner.items():
                floats = value is not None and value.is_floating_point()
                if floats and name not in module._non_persistent_buffers_set:
                    places.append((f"{prefix}.{name}".removeprefix("."), owner, name))
    return places


def _floats(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    return {key: value.detach() for key, value in state.items() if value.is_floating_point()}
