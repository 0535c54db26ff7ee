"""Small models of the reference package with random weights, and the files that its own tools make
of them.

The two writers do what the reference's `tools/` folder does, which its package does not carry.
"""

import json
import pickle
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from demucs.demucs import Demucs
from demucs.hdemucs import HDemucs
from demucs.htdemucs import HTDemucs
from demucs.states import save_with_checksum, serialize_model
from omegaconf import OmegaConf
from torch import Tensor, nn

FOUR = ["drums", "bass", "other", "vocals"]
SMALL: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "Demucs": (Demucs, {"channels": 4, "depth": 2, "resample": False, "segment": 2}),
    "HDemucs": (HDemucs, {"channels": 4, "nfft": 256, "depth": 4, "segment": 2}),
    "HTDemucs": (
        HTDemucs,
        {
            "channels": 4,
            "nfft": 256,
            "depth": 2,
            "bottom_channels": 16,
            "dconv_comp": 2,
            "t_layers": 2,
            "t_heads": 2,
            "segment": Fraction(10_001, 8000),
        },
    ),
}


def reference_model(kind: str, *, seed: int = 0, **changes: Any) -> nn.Module:
    """A small model of the reference, `kind` of SMALL, in eval mode."""
    klass, kwargs = SMALL[kind]
    torch.manual_seed(seed)
    return klass(**{"sources": FOUR, "samplerate": 8000, **kwargs, **changes}).eval()


def official_package(model: nn.Module, *, quantizer: Any = None, half: bool = True) -> dict:
    """What the reference's tools/export.py saves of a model."""
    training_args = OmegaConf.create({"model": "small", "optim": {"lr": 3e-4}, "seeds": [1, 2]})
    package = serialize_model(model, training_args, quantizer, half)
    package["metrics"] = ({"nsdr": 5.0}, None)
    return package


def official_file(
    model: nn.Module,
    folder: Path,
    signature: str,
    *,
    checksum: bool = True,
    quantizer: Any = None,
) -> Path:
    """`folder/signature[-checksum].th` as the reference writes it."""
    package = official_package(model, quantizer=quantizer)
    if not checksum:
        torch.save(package, folder / f"{signature}.th")
        return folder / f"{signature}.th"
    save_with_checksum(package, folder / f"{signature}.th")
    return next(folder.glob(f"{signature}-*.th"))


def safetensors_file(
    model: nn.Module, folder: Path, signature: str, *, quantizer: Any = None
) -> Path:
    """`folder/signature.safetensors` as the reference's tools/export_hf.py writes it."""
    return save_tensors(official_package(model, quantizer=quantizer), folder, signature)


def save_tensors(package: dict, folder: Path, signature: str) -> Path:
    klass, state = package["klass"], package["state"]
    metadata = {"klass": f"{klass.__module__}.{klass.__qualname__}"}
    metadata |= {key: json.dumps(package[key], default=_fraction) for key in ("args", "kwargs")}
    tensors: dict[str, Tensor] = {name: value for name, value in state.items()}
    if "__quantized" in state:
        tensors = {}
        metadata["structure"] = json.dumps(_structure(state, "state", tensors))
    path = folder / f"{signature}.safetensors"
    safetensors.torch.save_file(tensors, path, metadata=metadata)
    return path


def _fraction(value: Any) -> Any:
    assert isinstance(value, Fraction)
    return {"_type": "fraction", "numerator": value.numerator, "denominator": value.denominator}


def _structure(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The nesting of a quantised state as JSON; its tensors go to `tensors`."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().clone().contiguous()
        return {"_tensor": name}
    if isinstance(value, dict):
        return {"_dict": [[k, _structure(v, f"{name}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        inner = [_structure(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]
        return {f"_{type(value).__name__}": inner}
    if isinstance(value, type):
        return {"_class": f"{value.__module__}.{value.__qualname__}"}
    return value


class Raw:
    """Pickle operations to be written as they are."""

    def __init__(self, operations: bytes) -> None:
        self.operations = operations


class RawPickler(pickle._Pickler):
    dispatch: Any = dict(pickle._Pickler.dispatch)

    def save_raw(self: Any, raw: Raw) -> None:
        self.write(raw.operations)

    dispatch[Raw] = save_raw


RAW: Any = SimpleNamespace(__name__="pickle", Pickler=RawPickler)


@pytest.fixture
def mixture() -> Tensor:
    """Noise of 1.2 seconds at 8000 Hz, (1, C, T)."""
    return torch.randn(1, 2, 9600, generator=torch.Generator().manual_seed(0))
