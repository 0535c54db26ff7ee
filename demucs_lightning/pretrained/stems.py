"""Weights for other stems than those that they were trained for.

Where a network has an axis over stems, in the layers that give its output, kept stems take their
channels along by name, and new ones keep what the freshly built network has there. All other
weights are taken as they are. Which axes these are is read off the network itself, built with one
stem more, so any class of ``CLASSES`` will do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, Tensor

from demucs_lightning.pretrained.package import CLASSES, Package, check_fits


@dataclass(frozen=True)
class Transfer:
    """How the weights of ``package`` become those of a network for ``sources``.

    ``axes`` is the axis over stems, of size S times anything, of each weight that has one.
    """

    package: Package
    sources: Sequence[str]
    axes: Mapping[str, int]

    @property
    def decisions(self) -> list[str]:
        """What becomes of each stem, and of the weights; a line each."""
        found = self.package.kwargs["sources"]
        lines = [
            f"{name}: carried over" if name in found else f"{name}: new, starts at random"
            for name in self.sources
        ]
        lines += [f"{name}: dropped" for name in found if name not in self.sources]
        return [*lines, self._precision()]

    def weights(self, fresh: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict, in fp32, for the network whose state is ``fresh``, of the shapes that
        ``plan`` found to fit.
        """
        state = {}
        for name, value in self.package.state.items():
            value = value.float() if value.is_floating_point() else value
            axis = self.axes.get(name)
            state[name] = value if axis is None else self._carried(value, fresh[name], axis)
        return state

    def _carried(self, value: Tensor, fresh: Tensor, axis: int) -> Tensor:
        found = list(self.package.kwargs["sources"])
        theirs = value.unflatten(axis, (len(found), -1)).unbind(axis)
        ours = fresh.to(value).unflatten(axis, (len(self.sources), -1)).unbind(axis)
        stems = [
            theirs[found.index(name)] if name in found else ours[index]
            for index, name in enumerate(self.sources)
        ]
        return torch.stack(stems, axis).flatten(axis, axis + 1)

    def _precision(self) -> str:
        weights = [value for value in self.package.state.values() if value.is_floating_point()]
        bits = " and ".join(f"fp{8 * size}" for size in sorted({v.itemsize for v in weights}))
        count = sum(value.numel() for value in weights) / 1e6
        cast = "fp32" if bits == "fp32" else f"{bits} → fp32"
        return f"weights: {cast}, {count:.1f} M parameters from {self.package.origin}"


def plan(package: Package, kwargs: Mapping[str, Any]) -> Transfer:
    """How ``package`` becomes the same class of network with other arguments, ``sources`` among
    them; computes nothing.

    Raises ValueError, naming the origin, for a package that is damaged, and if a weight has another
    shape there for another reason than the number of stems, and whatever the class raises for
    arguments that it does not take.
    """
    check_fits(package)
    sources = list(kwargs["sources"])
    wanted = shapes(package.klass, kwargs)
    axes = stem_axes(package.klass, kwargs)
    found = {name: value.shape for name, value in package.state.items()}
    old, new = len(package.kwargs["sources"]), len(sources)
    for name in {**wanted, **found}:
        there, here = found.get(name), wanted.get(name)
        if there is None or here is None or _scaled(here, axes.get(name), new, old) != there:
            raise ValueError(
                f"{package.origin} does not fit: its {name} is {_words(there)}, but with these "
                f"settings it would be {_words(here)}."
            )
    return Transfer(package, sources, axes)


def stem_axes(klass: str, kwargs: Mapping[str, Any]) -> dict[str, int]:
    """The axis of each weight that grows with the number of sources."""
    count = len(kwargs["sources"])
    one_more = {**kwargs, "sources": [str(index) for index in range(count + 1)]}
    few, many = shapes(klass, kwargs), shapes(klass, one_more)
    axes = {}
    for name in few:
        grown = [axis for axis in range(len(few[name])) if few[name][axis] != many[name][axis]]
        if grown:
            (axes[name],) = grown
            assert _scaled(few[name], grown[0], count, count + 1) == many[name], name
    return axes


def shapes(klass: str, kwargs: Mapping[str, Any]) -> dict[str, Size]:
    """The shapes of the weights of a network, without any memory for them."""
    with torch.device("meta"):
        model = CLASSES[klass](**kwargs)
    return {name: value.shape for name, value in model.state_dict().items()}


def _scaled(shape: Size, axis: int | None, old: int, new: int) -> Size:
    """``shape`` for ``new`` stems where it has ``old``."""
    return Size(size // old * new if index == axis else size for index, size in enumerate(shape))


def _words(shape: Size | None) -> str:
    return "missing" if shape is None else " x ".join(map(str, shape))
