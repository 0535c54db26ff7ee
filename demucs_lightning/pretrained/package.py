"""What a file of weights says, whatever its kind, and the model that comes of it.

A file is not trusted. What it says of a model is compared with the class, and while a model is
built, it may not become larger than the weights that are there: a small file can ask for more
memory and time than any machine has.
"""

import inspect
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from reprlib import repr as short
from textwrap import shorten
from types import NoneType
from typing import Any, get_args, get_origin

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from demucs_lightning.models import Demucs, HDemucs, HTDemucs
from demucs_lightning.pretrained.files import signed

CLASSES: dict[str, type[nn.Module]] = {
    "Demucs": Demucs,
    "HDemucs": HDemucs,
    "HTDemucs": HTDemucs,
}
UNBUILDABLE = (
    *(TypeError, ValueError, RuntimeError, ArithmeticError),
    *(LookupError, AttributeError, MemoryError),
)
RANDOM = (
    *(Tensor.uniform_, Tensor.normal_, init.uniform_, init.normal_),
    *(init.kaiming_uniform_, init.xavier_uniform_),
)
MAX_SAMPLES = 2**31  # of a segment
LONGEST = 250  # letters of what a class finds wrong, in a sentence
SLACK = 10**6  # numbers, beyond twice those of the file: so far, what does not fit has a name


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

    @property
    def signature(self) -> str:
        """Such as 955717e8, of a file named 955717e8-8726e21a.th."""
        return signed(self.origin)[0]

    def argument(self, name: str) -> Any:
        """What the constructor takes for an argument: the given value, or its default.

        Raises KeyError where it is not given and has none.
        """
        default = inspect.signature(CLASSES[self.klass]).parameters[name].default
        return (
            self.kwargs[name]
            if default is inspect.Parameter.empty
            else self.kwargs.get(name, default)
        )


@dataclass(frozen=True)
class Room:
    """How large a model may become: so many weights, of so many numbers in all."""

    weights: int
    numbers: int


def room_of(tensors: Iterable[Tensor], *, per_byte: float | None = None) -> Room:
    """What there is room for in the memory of ``tensors``, however often they share it; with
    ``per_byte`` numbers in a byte, where that is not what their types say.
    """
    count, numbers = 0, {}
    for tensor in tensors:
        storage, count = tensor.untyped_storage(), count + 1
        held = int(storage.nbytes() * (per_byte or 1 / tensor.element_size()))
        place = storage.data_ptr() or id(tensor)
        numbers[place] = max(held, numbers.get(place, 0))
    return Room(count, sum(numbers.values()))


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
    """Raise ValueError, naming the origin, for an unknown class, for an argument that it does not
    take, and for one that is of another kind than it takes."""
    klass, origin = package.klass, package.origin
    if klass not in CLASSES:
        raise ValueError(
            f"{origin} holds the model {klass}; those that can be built are {', '.join(CLASSES)}."
        )
    known = inspect.signature(CLASSES[klass]).parameters
    if unknown := [name for name in package.kwargs if name not in known]:
        raise ValueError(f"{origin} has {unknown[0]}, which is no argument of {klass}.")
    for name, value in package.kwargs.items():
        if not _is_kind(value, known[name].annotation):
            raise ValueError(
                f"{origin} says that {name} of its {klass} is {short(value)}: it must be "
                f"{_words(known[name].annotation)}."
            )
    if "sources" not in package.kwargs:
        raise ValueError(f"{origin} is damaged: it does not say what its {klass} separates.")
    if not 1 <= package.argument("samplerate") * package.argument("segment") <= MAX_SAMPLES:
        raise ValueError(
            f"{origin} says that its {klass} takes {package.argument('segment')} seconds at "
            f"{package.argument('samplerate')} Hz, which is no length of a piece of music."
        )


def _is_kind(value: Any, annotation: Any) -> bool:
    """Whether an argument is what its annotation says; any number stands for any other."""
    if get_origin(annotation) is Sequence:
        (inner,) = get_args(annotation)
        return isinstance(value, list | tuple) and all(_is_kind(each, inner) for each in value)
    if kinds := get_args(annotation):
        return any(_is_kind(value, kind) for kind in kinds)
    if annotation in (str, NoneType):
        return isinstance(value, annotation)
    return isinstance(value, int | float | Fraction) and value == value  # which NaN is not


def _words(annotation: Any) -> str:
    if get_origin(annotation) is Sequence:
        return f"a list, each {_words(get_args(annotation)[0])}"
    if kinds := get_args(annotation):
        return " or ".join(dict.fromkeys(map(_words, kinds)))
    return {str: "text", NoneType: "null"}.get(annotation, "a number")


class _TooLarge(Exception):
    """A model has no room."""


class _Budget(threading.local):
    """The room that is left for the model that this thread is making, if it is making one."""

    left: Room | None = None

    def charge(self, module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        if self.left is None:
            return
        self.left = Room(self.left.weights - 1, self.left.numbers - parameter.numel())
        if min(self.left.weights, self.left.numbers) < 0:
            raise _TooLarge


_budget = _Budget()


@cache
def _watch() -> None:
    """Once, and for good: torch goes through its hooks in all threads."""
    register_module_parameter_registration_hook(_budget.charge)


@contextmanager
def _within(room: Room) -> Iterator[None]:
    """Stops what makes a model, in this thread, as soon as it is far larger than ``room``.

    A layer registers a weight before it writes to it: memory that is not there is not touched.
    """
    _watch()
    _budget.left = Room(2 * room.weights + 100, 2 * room.numbers + SLACK)
    try:
        yield
    finally:
        _budget.left = None


class _Undrawn(TorchFunctionMode):
    """Leaves out the random numbers that a model starts with: half the time that it takes to load
    one, and all of them are overwritten."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def construct(package: Package, room: Room) -> nn.Module:
    """The model of a package, with initial weights. Raises ValueError as ``build``, and if it needs
    far more than ``room``."""
    check_arguments(package)
    klass, origin = package.klass, package.origin
    try:
        with _within(room):
            return CLASSES[klass](**package.kwargs)
    except _TooLarge as error:
        raise ValueError(
            f"{origin} is damaged: what it says of its {klass} makes a larger model than the one "
            "that its weights are of."
        ) from error
    except UNBUILDABLE as error:
        if type(error) is not ValueError:
            raise ValueError(
                f"{origin} is damaged: the arguments of its {klass} do not fit together."
            ) from error
        reason = shorten(str(error).rstrip("."), LONGEST)
        raise ValueError(f"{origin} holds a {klass} that can't be built: {reason}.") from error


def build(package: Package) -> nn.Module:
    """The model of a package, in fp32 and eval mode on the CPU.

    Raises ValueError, naming the origin, for an unknown class or argument, and for arguments or
    weights that do not fit the class.
    """
    with _Undrawn():
        model = _fitting(package)
    model.load_state_dict(package.state)
    return model.eval()


def check_fits(package: Package) -> None:
    """Raise what ``build`` raises, without the memory for a model."""
    with torch.device("meta"):
        _fitting(package)


def _fitting(package: Package) -> nn.Module:
    """The model of a package, of the names and shapes of its weights."""
    klass, origin, state = package.klass, package.origin, package.state
    try:
        room = room_of(state.values())
    except (NotImplementedError, RuntimeError) as error:  # of a tensor that has no memory
        raise ValueError(
            f"{origin} is damaged: it does not have weights where they should be."
        ) from error
    model = construct(package, room)
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    found = {name: value.shape for name, value in state.items()}
    if wrong := [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]:
        raise ValueError(
            f"{origin} is damaged: its {wrong[0]} does not fit the model {klass} that it names."
        )
    return model
