"""What a process does with the memory that it frees, and with threads that wait.

glibc gives each freed block above 32 MiB back to the kernel, and takes it anew, page by page and
cleared, for the next layer. On a CPU this can cost as much as the computing itself
(benchmarks/NOTES.md). So it keeps freed memory while a network computes, `kept`, and in a process
that is there for a command alone, `own_process`. Otherwise another program's process stays as it
is.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

CHOICES = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
GPU_CHOICES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
# The numbers of malloc.h, with the values while freed memory is kept (all blocks from the heap, and
# none of it returned), and those that glibc comes to by itself in a program with large blocks.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
KEEPING = {MMAP_MAX: 0, TRIM_THRESHOLD: -1}
USUAL = {MMAP_MAX: 65536, MMAP_THRESHOLD: 32 * 2**20, TRIM_THRESHOLD: 64 * 2**20}


def own_process() -> None:
    """Set up this process, which runs a command and nothing else; before torch is loaded, or the
    threads stay as they are."""
    # A thread that waits by spinning takes the core from the one it waits for: a step was ten times
    # slower on a busy machine (benchmarks/NOTES.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A GPU's memory in segments that grow: what is free in several small ones serves no large one.
    if sys.platform == "linux" and not any(name in os.environ for name in GPU_CHOICES):
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"  # of any torch
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees for what it needs next; whether that is done.

    Between the blocks that it keeps are holes: its peak grows, by a third or so in training
    (benchmarks/NOTES.md), and stays there. Nothing is done where the user has chosen how memory is
    allocated by a variable of the environment, and on systems without glibc.
    """
    return _keepers.enter()


@contextmanager
def kept() -> Iterator[None]:
    """Keep freed memory, as `keep_freed_memory` does, until this ends; then it is returned. The
    process may have several of these at a time, in any threads."""
    _keepers.enter()
    try:
        yield
    finally:
        _keepers.leave()


class _Keepers:
    """Who needs that freed memory is kept: the first begins it, the last ends it."""

    def __init__(self) -> None:
        self._lock, self._count, self._kept = threading.Lock(), 0, False

    def enter(self) -> bool:
        with self._lock:
            self._count += 1
            if self._count == 1:
                chosen = any(name.startswith(CHOICES) for name in os.environ)
                self._kept = not chosen and _set(KEEPING)
            return self._kept

    def leave(self) -> None:
        with self._lock:
            self._count -= 1
            if self._count == 0 and self._kept:
                _set(USUAL)
                return_freed_memory()


def return_freed_memory() -> None:
    """Give what this process has freed back to the system, where its C library can."""
    _of_glibc("malloc_trim", 0)


def _set(values: dict[int, int]) -> bool:
    return all(_of_glibc("mallopt", *each) for each in values.items())


def _of_glibc(name: str, *values: int) -> int:
    try:
        return getattr(ctypes.CDLL(None), name)(*values)
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return 0


_keepers = _Keepers()
