"""Exceptions that are the user's to mend, in one sentence; HYDRA_FULL_ERROR=1 shows where they come
from.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from demucs_lightning.commands import INTERRUPTED
from demucs_lightning.commands.advice import OUT_OF_MEMORY
from demucs_lightning.data.disk import amount
from demucs_lightning.scale.launch import current
from demucs_lightning.separation.memory import is_memory

# Exceptions of packages that take seconds to load: where they aren't loaded, nobody raises them.
OF_SETTINGS = {
    "hydra.errors": "HydraException",
    "omegaconf.errors": "OmegaConfBaseException",
    "lightning.pytorch.utilities.exceptions": "MisconfigurationException",
}

ASKED = re.compile(r"tried to allocate ([\d.]+) (\w+)", re.IGNORECASE)
CAPACITY = re.compile(r"total capacity of ([\d.]+) (\w+)")
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def mistakes() -> tuple[type[BaseException], ...]:
    """The exceptions that are the user's to mend."""
    loaded = [
        getattr(sys.modules[module], name)
        for module, name in OF_SETTINGS.items()
        if module in sys.modules
    ]
    lost = (distributed.DistNetworkError, distributed.DistStoreError)
    return (ValueError, OSError, torch.OutOfMemoryError, *lost, *loaded)


@contextmanager
def explained(memory: Callable[[], str] | None = None) -> Iterator[None]:
    """Ends the program with one sentence and status 1 for a mistake of the user, in settings, files
    or devices, and with status 130 for a Ctrl-C; the notes of an exception follow it. ``memory``
    says what to do where it ran out.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        print("\n".join(["Interrupted.", *notes(interrupt)]), file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (*mistakes(), RuntimeError) as error:
        cause = _cause(error)
        known = isinstance(cause, mistakes()) or is_memory(cause)
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not known:
            raise
        said = memory() if memory and is_memory(cause) else sentence(cause)
        said += _lacked(cause) if is_memory(cause) else ""
        if not _is_said():
            print("\n".join([f"error: {_who(cause)}{said}", *notes(error)]), file=sys.stderr)
        sys.exit(1)


def notes(error: BaseException) -> list[str]:
    """What was added to the exception on its way, which Python prints below a traceback."""
    return getattr(error, "__notes__", [])


def _lacked(error: BaseException) -> str:
    """How much was asked for, and how much the device has, as far as torch says so."""
    asked, capacity = (_size(pattern.search(str(error))) for pattern in (ASKED, CAPACITY))
    if not asked:
        return ""
    return f" It asked for {asked} more{f' of {capacity}' if capacity else ''}."


def _size(found: re.Match[str] | None) -> str:
    return amount(int(float(found[1]) * UNITS.get(found[2], 1))) if found else ""


def _is_said() -> bool:
    """Whether the first process of this machine says the same: before torch connects them, nothing
    differs between those that torchrun or srun has started.
    """
    try:
        return not current().speaks and not distributed.is_initialized()
    except ValueError:  # what is wrong may be just that
        return False


def _who(error: BaseException) -> str:
    alone = not distributed.is_initialized() or distributed.get_world_size() == 1
    if not alone and not isinstance(error, ConnectionError):  # which says who is lost
        return f"process {distributed.get_rank()} of {distributed.get_world_size()}: "
    return ""


def sentence(error: BaseException) -> str:
    """What to tell the user."""
    if is_memory(error):
        return OUT_OF_MEMORY
    text = str(error).strip()
    if isinstance(error, distributed.DistNetworkError):  # the rest is where in torch
        return f"{text.splitlines()[0]} Are MASTER_ADDR and MASTER_PORT those of the first process?"
    if isinstance(error, distributed.DistStoreError):
        return "another process has not answered, or is gone: see what it says itself."
    if (
        text.startswith("Caught ") and "Original Traceback" in text
    ):  # from a process that loads data
        text = text.splitlines()[-1].partition(": ")[2]
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(text.split())


def _cause(error: BaseException) -> BaseException:
    module = sys.modules.get("hydra.errors")
    while module and isinstance(error, module.InstantiationException) and error.__cause__:
        error = error.__cause__
    return error
