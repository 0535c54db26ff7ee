"""The memory of a process, for tests that bound it."""

import re
from pathlib import Path


def peak() -> int:
    """The most that this process had in memory at a time, in kB.

    Not ``getrusage``: that counts what the process was before it became this program, too.
    """
    (size,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(size)
