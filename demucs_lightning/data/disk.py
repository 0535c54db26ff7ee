"""What `download` and `archive` share: locks, room on the disk, writing, progress.

Contract: a full disk is an `OSError` of one sentence that says how much room is missing and where.
"""

import contextlib
import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from tqdm import tqdm

try:
    import fcntl
except ImportError:  # not POSIX: two processes at once are then the user's to avoid
    fcntl = None

log = logging.getLogger(__name__)

CHUNK = 1 << 20  # bytes read or written at once
FULL = {errno.ENOSPC, errno.EDQUOT}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other process is busy in `folder`, which is made where there is none; a process
    that dies gives the lock up.
    """
    waits = True
    while waits:
        folder.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            yield
            return
        handle = os.open(folder, os.O_RDONLY)
        try:
            _lock(handle, folder)
            waits = not _is_open(handle, folder)
            if not waits:
                yield
        finally:
            os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    assert fcntl is not None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.warning("another process is setting up %s: waiting for it", folder)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:  # a network file system without locks
        log.warning("%s can't be locked (%s): set it up from one process only", folder, error)


def _is_open(handle: int, folder: Path) -> bool:
    """Whether it still is the folder of this name: who had the lock may have replaced it."""
    return folder.exists() and os.path.samestat(os.fstat(handle), folder.stat())


def check_writable(folder: Path) -> None:
    """Make `folder` where there is none; raise `OSError` where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"{folder} can't be written ({error.strerror}): set data_root to another place."
        ) from error


def check_space(folder: Path, needed: int, *, purpose: str) -> None:
    """Raise `OSError` unless the disk of `folder` has room for `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder} has {amount(free)} free, but {amount(needed)} are needed to {purpose}."
        )


def write(file: FileIO, chunk: bytes, *, missing: int, name: str = "") -> None:
    """Write all of `chunk` to an unbuffered file, which is to grow by `missing` bytes in all.

    `name` is what to call the file in the sentence of a full disk, where its own says nothing.
    """
    view = memoryview(chunk)
    try:
        while view:
            view = view[file.write(view) :]
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OSError(
            f"the disk is full: {name or file.name} needs another {amount(missing)}; "
            "make room and run it again."
        ) from error


def progress(total: int | None, what: str, *, done: int = 0, hidden: bool = False) -> tqdm:
    """A bar in bytes, with speed and time left; on a terminal only."""
    disable = True if hidden else None
    kind = {"unit": "B", "unit_scale": True}
    return tqdm(total=total, initial=done, desc=what, leave=False, disable=disable, **kind)


def size_of(path: Path) -> int:
    """Bytes of the file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def amount(size: int) -> str:
    """`size` bytes for people: 22.7 GB, 3.1 MB, 12 bytes."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"
