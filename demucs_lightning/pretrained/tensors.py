"""Models of demucs as ``.safetensors``: the weights, and JSON in the metadata that says of which
class they are and with which arguments.

A fraction stands there as ``{"_type": "fraction", "numerator": 39, "denominator": 5}``. The weights
of quantised models lie under names that ``structure`` puts in their places.
"""

import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from demucs_lightning.pretrained.files import UNREADABLE, check_bounded, check_file, write_whole
from demucs_lightning.pretrained.package import Package
from demucs_lightning.pretrained.reference import (
    Description,
    Named,
    described,
    fraction,
    interpreted,
)

KIND = "a .safetensors file"


def read(path: str | Path) -> Package:
    """The package in a ``.safetensors`` file; weights that DiffQ has quantised are restored.

    Raises FileNotFoundError or ValueError, naming the file, if it is missing or damaged, does not
    say what it is, or names an unknown class or argument.
    """
    path = check_file(path, KIND)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, *UNREADABLE) as error:
        raise ValueError(f"{path} is damaged or not {KIND}: it can't be read.") from error
    if missing := [key for key in ("klass", "args", "kwargs") if key not in metadata]:
        raise ValueError(
            f"{path} does not say which model its weights are of: {missing[0]} is not in its "
            "metadata."
        )
    description = Description(
        metadata["klass"],
        _decoded(path, metadata, "args"),
        _decoded(path, metadata, "kwargs"),
    )
    state: Any = tensors
    if "structure" in metadata:
        structure = _json(path, metadata, "structure")
        state = _part(path, "structure", lambda: _placed(structure, tensors))
    return interpreted(description, state, str(path))


def write(package: Package, path: str | Path, *, half: bool = True) -> None:
    """Write a file that demucs loads, with every argument by name; ``half``: weights in fp16.

    Raises ValueError where the package is not a model of demucs, or its weights are beyond fp16,
    and OSError where the disk fails; what was at ``path`` is replaced by the whole file or stays.
    """
    description, state = described(package, half=half)
    metadata = {
        "klass": description.klass,
        "args": json.dumps(description.args),
        "kwargs": json.dumps(description.kwargs, default=_encoded),
    }
    write_whole(path, save(state, metadata))


def _encoded(value: Any) -> dict[str, Any]:
    if not isinstance(value, Fraction):
        raise TypeError(f"{type(value).__name__} is no JSON")
    return {"_type": "fraction", "numerator": value.numerator, "denominator": value.denominator}


def _json(path: Path, metadata: Mapping[str, str], key: str) -> Any:
    value = _part(path, key, lambda: json.loads(metadata[key]))
    check_bounded(value, path)
    return value


def _part(path: Path, key: str, decode: Any) -> Any:
    try:
        return decode()
    except UNREADABLE as error:
        raise ValueError(f"{path} is damaged: {key} in its metadata can't be read.") from error


def _decoded(path: Path, metadata: Mapping[str, str], key: str) -> Any:
    value = _json(path, metadata, key)
    return _part(path, key, lambda: _with_fractions(value))


def _with_fractions(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_fractions(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    if value.get("_type") == "fraction":
        return fraction(value["numerator"], value["denominator"])
    return {key: _with_fractions(inner) for key, inner in value.items()}


def _placed(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The quantised state that a node of ``structure`` describes."""
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    if kind == "_tensor":
        return tensors[value]
    if kind == "_class":
        return Named(value)
    if kind == "_dict":
        return {key: _placed(inner, tensors) for key, inner in value}
    if kind in ("_list", "_tuple"):
        placed = [_placed(inner, tensors) for inner in value]
        return placed if kind == "_list" else tuple(placed)
    raise ValueError(f"{kind} is no kind of node")
