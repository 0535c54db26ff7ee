"""How the memory of a command's process is kept.

glibc gives each freed block above 32 MiB back to the kernel, and takes it anew, page by page and
cleared, for the next layer: a sixth to a fifth of what a separation on a CPU takes
(benchmarks/NOTES.md).
"""

import ctypes
import os

# From malloc.h
TRIM_THRESHOLD, MMAP_MAX = -1, -4
CHOICES = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees for what it needs next; whether that is done.

    Its peak stays what it is. Nothing is done where the user has chosen how memory is allocated by
    a variable of the environment, and on systems without glibc.
    """
    if any(name.startswith(CHOICES) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    # All blocks from the heap, and none of it returned.
    return bool(mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, -1))
