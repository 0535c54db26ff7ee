"""The official ``.th`` packages of demucs: a pickled dictionary with the class of the model, its
arguments and its weights, most often in half precision.

They are opened with an allow-list. For each class that such a file may name stands a ``Named``,
which can neither be called nor changed, so that not even a model can be built by a pickle; for a
fraction and for the numbers of NumPy, as files carry them in their metrics, functions that take
exactly what these are made of. Written are the same names, without importing ``demucs``.
"""

import io
import pickle
import re
import struct
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from demucs_lightning.pretrained.files import check_bounded, load_torch, write_whole
from demucs_lightning.pretrained.package import Package
from demucs_lightning.pretrained.quantized import QUANTIZERS
from demucs_lightning.pretrained.reference import (
    NAMES,
    Description,
    Named,
    described,
    fraction,
    interpreted,
)

KIND = "an official package (.th)"
PARTS = ("klass", "args", "kwargs", "state")
NUMBERS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "b1": "?"}


def read(path: str | Path) -> Package:
    """The package in a ``.th`` file; weights that DiffQ has quantised are restored.

    Raises FileNotFoundError or ValueError, naming the file, if it is missing, damaged, or holds
    anything but plain data, a known class, its arguments and its weights.
    """
    content = load_torch(path, kind=KIND, allowed=ALLOWED)
    if not isinstance(content, dict) or any(part not in content for part in PARTS):
        raise ValueError(f"{path} is not {KIND}: it does not say which model it is of.")
    check_bounded(content, path)
    klass = getattr(content["klass"], "path", None)
    if not isinstance(klass, str):
        raise ValueError(f"{path} is damaged: what it calls its model is no class.")
    description = Description(klass, content["args"], content["kwargs"])
    return interpreted(description, content["state"], str(path))


def write(package: Package, path: str | Path, *, half: bool = True) -> None:
    """Write a file that demucs loads, with every argument by name; ``half``: weights in fp16.

    Raises ValueError where the package is not a model of demucs, or its weights are beyond fp16,
    and OSError where the disk fails; what was at ``path`` is replaced by the whole file or stays.
    """
    description, state = described(package, half=half)
    content = {
        "klass": Named(description.klass),
        "args": tuple(description.args),
        "kwargs": description.kwargs,
        "state": state,
        "training_args": {},
    }
    buffer = io.BytesIO()
    torch.save(content, buffer, pickle_module=NAMING)
    write_whole(path, buffer.getvalue())


class _NamingPickler(pickle._Pickler):
    """Writes a ``Named`` as the class that it stands for, which need not exist here."""

    dispatch: Any = dict(pickle._Pickler.dispatch)

    def save_named(self: Any, named: Named) -> None:
        module, _, name = named.path.rpartition(".")
        self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        self.memoize(named)

    dispatch[Named] = save_named


NAMING: Any = SimpleNamespace(__name__="pickle", Pickler=_NamingPickler)


def _fraction(*terms: Any) -> Fraction:
    """Python pickles a fraction as ``"39/5"``, later versions as two numbers."""
    if len(terms) == 1 and isinstance(terms[0], str):
        if not re.fullmatch(r"-?\d{1,19}(/\d{1,19})?", terms[0]):
            raise ValueError("a fraction is one number, or two with a stroke between")
        terms = (*map(int, terms[0].split("/")), 1)[:2]
    return fraction(*terms)


class _NumberType:
    """NumPy's type of a number; which of its attributes a file sets does not matter but one."""

    __slots__ = ("code",)

    def __init__(self, code: str, *_flags: Any) -> None:
        self.code = "<" + NUMBERS[code]

    def __setstate__(self, state: Any) -> None:
        self.code = (">" if state[1] == ">" else "<") + self.code[1:]


def _number(kind: Any, data: Any) -> float | int | bool:
    """A number of NumPy as one of Python."""
    if type(kind) is not _NumberType:
        raise ValueError("a number has a type")
    return struct.unpack(kind.code, data)[0]


ALLOWED: dict[str, Any] = {
    **{path: Named(path) for path in (*NAMES, *QUANTIZERS)},
    "fractions.Fraction": _fraction,
    "numpy.dtype": _NumberType,
    "numpy.core.multiarray.scalar": _number,
    "numpy._core.multiarray.scalar": _number,
}
