"""What a file of weights says, whatever its kind, and the model that comes of it."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from demucs_lightning.models import Demucs, HDemucs, HTDemucs

CLASSES: dict[str, type[nn.Module]] = {
    "Demucs": Demucs,
    "HDemucs": HDemucs,
    "HTDemucs": HTDemucs,
}
UNBUILDABLE = (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError)


@dataclass(frozen=True)
class Package:
    """A model as data.

    ``klass`` is a name of ``CLASSES``, ``kwargs`` the arguments of its constructor by name (plain
    types, and a Fraction for seconds), ``state`` the state dict in the precision it is kept in, and
    ``origin`` the file, for messages.
    """

    klass: str
    kwargs: Mapping[str, Any]
    state: Mapping[str, Tensor]
    origin: str


def is_sound(value: Any) -> bool:
    """Whether a value is a plain tensor that claims no more numbers than the file has."""
    if type(value) not in (Tensor, nn.Parameter):
        return False
    if value.layout != torch.strided or value.device.type != "cpu":
        return False
    if value.is_quantized or value.is_nested:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def check_arguments(package: Package) -> None:
    """Raise ValueError, naming the origin, for an unknown class and for an argument that it does
    not take."""
    klass, origin = package.klass, package.origin
    if klass not in CLASSES:
        raise ValueError(
            f"{origin} holds the model {klass}; those that can be built are {', '.join(CLASSES)}."
        )
    known = inspect.signature(CLASSES[klass]).parameters
    if unknown := [name for name in package.kwargs if name not in known]:
        raise ValueError(f"{origin} has {unknown[0]}, which is no argument of {klass}.")


def construct(package: Package) -> nn.Module:
    """The model of a package, with initial weights. Raises ValueError as ``build``."""
    check_arguments(package)
    klass, origin = package.klass, package.origin
    try:
        return CLASSES[klass](**package.kwargs)
    except NotImplementedError as error:
        raise ValueError(f"{origin} holds a {klass} that can't be built: {error}") from error
    except UNBUILDABLE as error:
        reason = f" ({error})" if type(error) is ValueError else ""
        raise ValueError(
            f"{origin} is damaged: what it says does not fit the model {klass} that it names"
            f"{reason}."
        ) from error


def build(package: Package) -> nn.Module:
    """The model of a package, in fp32 and eval mode on the CPU.

    Raises ValueError, naming the origin, for an unknown class or argument, and for arguments or
    weights that do not fit the class.
    """
    klass, origin = package.klass, package.origin
    model = construct(package)
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    found = {name: value.shape for name, value in package.state.items()}
    if wrong := [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]:
        raise ValueError(
            f"{origin} is damaged: its {wrong[0]} does not fit the model {klass} that it names."
        )
    model.load_state_dict(package.state)
    return model.eval()
