"""Files of weights as files: opened without trust, written whole or not at all.

A torch file is read with ``weights_only=True``, so nothing in it is ever executed, after the
checksum of each of its parts was compared. What can't be read is a ValueError of one sentence that
names the file.
"""

import os
import pickle
import re
import struct
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from demucs_lightning.audio import replacing

UNREADABLE = (
    *(RuntimeError, EOFError, LookupError, OSError, ValueError, TypeError, AttributeError),
    *(ArithmeticError, AssertionError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
# What comes where a file was expected, by its first bytes.
WEB_PAGE = (b"<!doctype", b"<html", b"<?xml")
POINTER = b"version https://git-lfs"
CHECKSUM = re.compile(r"(.+)-([0-9a-f]{8,64})")
MAX_DEPTH, MAX_VALUES = 32, 100_000
# torch keeps its list of allowed names for the whole process.
_LOCK = threading.Lock()


def signed(path: str | Path) -> tuple[str, str | None]:
    """The signature in the name of a file, and the start of its sha256 where the name has that, as
    the `.th` files of demucs do: ``signature-checksum.th``.
    """
    path = Path(path)
    found = CHECKSUM.fullmatch(path.stem) if path.suffix == ".th" else None
    return (found[1], found[2]) if found else (path.stem, None)


def check_file(path: str | Path, kind: str) -> Path:
    """The path, if there is a file that may hold weights; ``kind`` is what should be there.

    Raises FileNotFoundError or ValueError, naming the file.
    """
    path = Path(path)
    if path.is_dir():
        inside = path / "last.ckpt"  # of a run
        hint = f": {inside} is meant, perhaps." if inside.is_file() else f", not {kind}."
        raise FileNotFoundError(f"{path} is a folder{hint}")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {kind} is expected there.")
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if not start:
        raise ValueError(f"{path} is damaged: it is empty.")
    if start.startswith(WEB_PAGE):
        raise ValueError(f"{path} is a web page, not the file itself: download it again.")
    if start.startswith(POINTER):
        raise ValueError(f"{path} is a Git LFS pointer, not the file itself: run git lfs pull.")
    return path


def load_torch(path: str | Path, *, kind: str, allowed: Mapping[str, Any] | None = None) -> Any:
    """The content of a torch file, tensors mapped from it, on the CPU.

    ``allowed`` says what stands for the names in it that torch does not know. Raises
    FileNotFoundError or ValueError, naming the file, if it is missing or damaged, or holds others.
    """
    path = check_file(path, kind)
    with _reading(path, kind):
        zipped = zipfile.is_zipfile(path)
        broken = _broken_part(path) if zipped else None
    if broken is not None:
        raise ValueError(f"{path} is damaged: the checksum of {broken} in it is wrong.")
    names: list[Any] = [(value, name) for name, value in (allowed or {}).items()]
    # Warnings are of the whole process too; torch has some, of pickles that it then refuses.
    with _reading(path, kind), _LOCK, _quiet(), torch.serialization.safe_globals(names):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except pickle.UnpicklingError as error:
        if "persistent_load" in str(error):  # a class by its source, as torch wrote until 1.5
            raise ValueError(
                f"{path} is in a format of torch before 1.6 that can't be read safely: "
                "save it again with a later one."
            ) from error
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        if name is None:
            raise ValueError(
                f"{path} is damaged, not {kind}, or holds more than plain data: it was not opened."
            ) from error
        raise ValueError(
            f"{path} is damaged or holds more than plain data ({name[1]}): it was not opened."
        ) from error
    except UNREADABLE as error:
        raise ValueError(f"{path} is damaged or not {kind}: it can't be read.") from error


def _broken_part(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise ValueError("torch stores, so that nothing grows when it is read")
        return archive.testzip()


def check_bounded(content: Any, origin: str | Path) -> None:
    """Raise ValueError unless ``content`` can be walked through: neither deeper nor larger, counted
    as often as it is referred to, than what any model says of itself."""
    waiting, count = [(content, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, Mapping):
            value = value.values()
        elif not isinstance(value, Sequence | Set) or isinstance(value, str | bytes | bytearray):
            continue
        count += len(value)
        if depth > MAX_DEPTH or count > MAX_VALUES:
            raise ValueError(f"{origin} is damaged: it is nested too deeply to describe a model.")
        waiting.extend((inner, depth + 1) for inner in value)


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file that takes its place when it is complete, or leave what was there.

    Raises OSError, naming the file, where the disk fails.
    """
    try:
        with replacing(Path(path)) as partial, partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
