"""Files that are being written: their temporary names, and those that a killed process has left.

Who writes one holds a lock on it, which ends with the process, however that ends.
"""

import logging
import os
import re
import threading
import zlib
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: what is left stays there
    fcntl = None

log = logging.getLogger(__name__)

NAME = re.compile(r"\.[0-9a-f]{8}-\d+-\d+\.part")


def partial_name(path: Path) -> Path:
    """What `path` is called while it is written: of one length, as names have a limit."""
    key = zlib.crc32(os.fsencode(path.name))
    return path.with_name(f".{key:08x}-{os.getpid()}-{threading.get_ident()}.part")


def held(partial: Path) -> int | None:
    """Make a file that is to be written and lock it; the descriptor that keeps the lock."""
    if fcntl is None:
        return None
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
    with suppress(OSError):  # a disk without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes have left half-written: what nobody holds, and whose process
    isn't there."""
    if fcntl is None or not folder.is_dir():
        return
    removed = 0
    for partial in folder.glob(".*.part"):
        if not NAME.fullmatch(partial.name) or _is_running(int(partial.name.split("-")[1])):
            continue
        with suppress(OSError):  # held by a process of another machine, or not ours to remove
            descriptor = os.open(partial, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                partial.unlink()
                removed += 1
            finally:
                os.close(descriptor)
    if removed:
        what = "1 half-written file" if removed == 1 else f"{removed} half-written files"
        log.warning("%s: removed %s of a run that was killed.", folder, what)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True
