"""The process of a command keeps the memory that it frees."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from demucs_lightning.commands import allocator

ROOT = Path(__file__).parents[1]
SCRIPT = """
import resource, sys
{setting}
import torch

torch.set_num_threads(1)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def fill():
    torch.ones(16 * 2**20)  # 64 MiB, 16,384 pages

for _ in range(20):  # the heap takes a few to settle
    fill()
before = faults()
for _ in range(4):
    fill()
print(faults() - before)
"""


def faults(setting: str) -> int:
    """How often a process asks for a page while it fills 64 MiB four times more."""
    clean = {name: value for name, value in os.environ.items() if not chosen(name)}
    command = [sys.executable, "-c", SCRIPT.format(setting=setting)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60, env=clean
    )
    return int(done.stdout)


def chosen(name: str) -> bool:
    return name.startswith(allocator.CHOICES)


def glibc() -> bool:
    return hasattr(os, "confstr") and "CS_GNU_LIBC_VERSION" in os.confstr_names


def test_commands_keep_what_they_free():
    kept = faults("import demucs_lightning.commands")
    # The library leaves the allocator of its host alone.
    left = faults("import demucs_lightning")
    if glibc():
        assert kept < 1000 < 30_000 < left
    else:
        assert kept == pytest.approx(left, rel=0.1)


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_the_choice_of_the_user_stays(monkeypatch, name):
    monkeypatch.setenv(name, "")
    assert not allocator.keep_freed_memory()


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_systems_without_it(monkeypatch, error):
    def load(name):
        raise error

    for name in filter(chosen, list(os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.setattr(allocator.ctypes, "CDLL", load)
    assert not allocator.keep_freed_memory()
