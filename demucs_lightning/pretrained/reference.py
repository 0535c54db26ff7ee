"""What the files of the reference package say of their models, as packages, and back.

They name a class of ``demucs`` by its full path, its arguments by place or by name, and a state
dict. Classes come from a table, never from an import, and every argument must be one that the class
takes. Both file kinds, ``official`` and ``tensors``, are read and written through this module.
"""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from demucs_lightning.pretrained.package import (
    CLASSES,
    Package,
    build,
    check_arguments,
    is_sound,
)
from demucs_lightning.pretrained.quantized import QUANTIZED, restore

NAMES = {
    "demucs.demucs.Demucs": "Demucs",
    "demucs.hdemucs.HDemucs": "HDemucs",
    "demucs.wdemucs.WDemucs": "HDemucs",
    "demucs.htdemucs.HTDemucs": "HTDemucs",
}
PATHS = {"Demucs": "demucs.demucs", "HDemucs": "demucs.hdemucs", "HTDemucs": "demucs.htdemucs"}
OWN = ("memory",)  # arguments that the reference does not know: how a model is trained
PLAIN = (type(None), bool, int, float, str, Fraction)
MAX_TERM = 2**63  # of a fraction of seconds: samples, and a rate


@dataclass(frozen=True)
class Named:
    """A class that a file names by its full path: the name, and nothing else."""

    path: str


@dataclass(frozen=True)
class Description:
    """A model as a file has it: the full path of its class, and what the class is called with."""

    klass: str
    args: list[Any] | tuple[Any, ...]
    kwargs: dict[str, Any]


def fraction(numerator: Any, denominator: Any) -> Fraction:
    """A fraction of two whole numbers; ValueError for anything else, and for a zero below."""
    for term in (numerator, denominator):
        if type(term) is not int or abs(term) > MAX_TERM:
            raise ValueError("the terms of a fraction are whole numbers")
    if denominator == 0:
        raise ValueError("the denominator of a fraction is not zero")
    return Fraction(numerator, denominator)


def interpreted(description: Description, state: Any, origin: str) -> Package:
    """The package of what a file describes and of the state that it holds.

    Raises ValueError, naming the file, for a class, an argument or weights that can't be.
    """
    if description.klass not in NAMES:
        raise ValueError(
            f"{origin} holds the model {ascii(description.klass)[1:-1][:80]}; "
            f"those that can be read are {', '.join(sorted(NAMES))}."
        )
    klass = NAMES[description.klass]
    package = Package(klass, _named(description, klass, origin), state, origin)
    check_arguments(package)
    if not isinstance(state, dict):
        raise ValueError(f"{origin} is damaged: it does not have weights where they should be.")
    state = restore(package) if QUANTIZED in state else _sound(state, origin)
    return Package(klass, package.kwargs, _with_current_names(state), origin)


def _named(description: Description, klass: str, origin: str) -> dict[str, Any]:
    """All arguments by name."""
    args, kwargs = description.args, description.kwargs
    named = isinstance(kwargs, dict) and all(
        isinstance(name, str) and name.isidentifier() for name in kwargs
    )
    if not named or not isinstance(args, list | tuple):
        raise ValueError(f"{origin} is damaged: the arguments of its {klass} have no names.")
    names = [name for name in inspect.signature(CLASSES[klass]).parameters if name not in OWN]
    if len(args) > len(names):
        raise ValueError(f"{origin} has {len(args)} arguments, but {klass} takes {len(names)}.")
    by_place = dict(zip(names, args, strict=False))
    if twice := [name for name in by_place if name in kwargs]:
        raise ValueError(f"{origin} is damaged: it has {twice[0]} of its {klass} twice.")
    everything = {**by_place, **kwargs}
    if unknown := [name for name in OWN if name in kwargs]:
        raise ValueError(f"{origin} has {unknown[0]}, which is no argument of {klass}.")
    if wrong := [name for name, value in everything.items() if not _is_plain(value)]:
        raise ValueError(f"{origin} is damaged: {wrong[0]} of its {klass} is not plain data.")
    return everything


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(_is_plain(inner) for inner in value)
    if type(value) is dict:
        return all(type(key) is str and _is_plain(inner) for key, inner in value.items())
    return type(value) in PLAIN


def _sound(state: Mapping[Any, Any], origin: str) -> dict[str, Tensor]:
    """The weights, each of them a whole tensor of floats in memory of its own size."""
    for name, value in state.items():
        if not isinstance(name, str) or not is_sound(value) or not value.is_floating_point():
            raise ValueError(f"{origin} is damaged: its {ascii(name)[:80]} holds no weights.")
    return {name: value.detach() for name, value in state.items()}


def _with_current_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Earlier files of Demucs, from before its layers had norms, count their convolutions one less:
    ``encoder.0.2.weight`` is now ``encoder.0.3.weight``."""
    renamed = {}
    for name in state:
        layer = re.fullmatch(r"((?:encoder|decoder)\.\d+)\.2\.(weight|bias)", name)
        # Without rewrite, a norm stands there today; its weight has one dimension.
        if layer and f"{layer[1]}.3.weight" not in state:
            weight = state.get(f"{layer[1]}.2.weight")
            if weight is not None and weight.dim() == 3:
                renamed[name] = f"{layer[1]}.3.{layer[2]}"
    return {renamed.get(name, name): value for name, value in state.items()}


def described(package: Package, *, half: bool) -> tuple[Description, dict[str, Tensor]]:
    """What a file of the reference says of a package: every argument by name, and the weights in
    half precision or in full, in memory of their own.

    Raises ValueError, naming the origin, where the package is not a model of the reference, or a
    weight is beyond the range of half precision.
    """
    model: Any = build(package)
    call = inspect.signature(CLASSES[package.klass]).bind(**package.kwargs)
    call.apply_defaults()
    kwargs = {name: value for name, value in call.arguments.items() if name not in OWN}
    kwargs["sources"] = list(kwargs["sources"])
    if type(kwargs["segment"]) is float and hasattr(model, "training_length"):
        # demucs 4 cuts the samples of a float off, which may lose the last one.
        kwargs["segment"] = Fraction(model.training_length, kwargs["samplerate"])
    if wrong := [name for name, value in kwargs.items() if not _is_plain(value)]:
        raise ValueError(f"{package.origin} has {wrong[0]}, which no file of demucs can hold.")
    dtype = torch.float16 if half else torch.float32
    state = {name: _converted(name, value, dtype, package) for name, value in package.state.items()}
    return Description(f"{PATHS[package.klass]}.{package.klass}", [], kwargs), state


def _converted(name: str, value: Tensor, dtype: torch.dtype, package: Package) -> Tensor:
    value = value.detach().cpu()
    converted = value.to(dtype, copy=True, memory_format=torch.contiguous_format)
    if (converted.isinf() & value.isfinite()).any():
        raise ValueError(
            f"{package.origin} has values in {name} that half precision can't hold: "
            "write it in full precision."
        )
    return converted
