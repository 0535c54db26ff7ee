"""Exceptions that are the user's to mend, in one sentence; HYDRA_FULL_ERROR=1 shows where they come
from.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from hydra.errors import HydraException, InstantiationException
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException

MISTAKES = (ValueError, OSError, HydraException, OmegaConfBaseException, MisconfigurationException)
OUT_OF_MEMORY = (
    "The GPU ran out of memory: make batch_size or segment smaller, use trainer.precision=bf16, "
    "or take the overlay experiment=low_memory."
)


@contextmanager
def explained() -> Iterator[None]:
    """Ends the program with one sentence and status 1 for a mistake of the user, in settings, files
    or devices.
    """
    try:
        yield
    except (*MISTAKES, torch.OutOfMemoryError) as error:
        cause = _cause(error)
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not isinstance(
            cause, (*MISTAKES, torch.OutOfMemoryError)
        ):
            raise
        print(f"error: {sentence(cause)}", file=sys.stderr)
        sys.exit(1)


def sentence(error: BaseException) -> str:
    """What to tell the user."""
    if isinstance(error, torch.OutOfMemoryError):
        return OUT_OF_MEMORY
    text = str(error).strip()
    if (
        text.startswith("Caught ") and "Original Traceback" in text
    ):  # from a process that loads data
        text = text.splitlines()[-1].partition(": ")[2]
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(text.split())


def _cause(error: BaseException) -> BaseException:
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error
