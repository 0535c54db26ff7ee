"""Freed memory is kept by the process of a command, and by another's while it separates."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from demucs_lightning import allocator

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


ALLOCATOR = "from demucs_lightning.allocator import kept, own_process\n"
OWN, WHILE = ALLOCATOR + "own_process()", ALLOCATOR + "held = kept(); held.__enter__()"
IMPORTED = "import demucs_lightning.commands.separate"
AFTER = ALLOCATOR + "with kept(), kept(): pass"
BOTH = ALLOCATOR + "own_process()\nwith kept(): pass"


@pytest.mark.parametrize("setting", [OWN, WHILE, BOTH])
def test_freed_memory_is_kept(setting):
    left = faults(IMPORTED)
    if glibc():
        assert faults(setting) < 1000 < 30_000 < left
    else:
        assert faults(setting) == pytest.approx(left, rel=0.1)


def test_afterwards_it_is_returned():
    assert faults(AFTER) == pytest.approx(faults(IMPORTED), rel=0.1)


SEPARATION = """
import ctypes
import torch
from demucs_lightning import Separator
from demucs_lightning.models import HDemucs

calls = []

class Glibc:
    def __init__(self, name): ...
    def mallopt(self, *values):
        calls.append(values)
        return 1
    def malloc_trim(self, pad):
        calls.append("trim")

ctypes.CDLL = Glibc
model = HDemucs(["vocals", "rest"], channels=4, dconv_mode=0, segment=2)
separator = Separator(model, device="cpu")
blocks = separator.stream(torch.randn(2, 44100 * 12).split(4410, dim=1), 44100)
assert not calls
next(blocks)
assert (-4, 0) in calls and "trim" not in calls
list(blocks)
assert (-4, 65536) in calls and calls[-1] == "trim"
"""


def test_a_separator_keeps_it_while_it_computes():
    env = {name: value for name, value in os.environ.items() if not chosen(name)}
    command = [sys.executable, "-c", SEPARATION]
    env["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0, done.stderr


PROGRAM = """
import os, runpy, sys
from demucs_lightning import commands
from demucs_lightning import allocator

def own_process():
    sys.exit("own, and torch is loaded" if "torch" in sys.modules else "own")

commands.own_process = allocator.own_process = own_process
before = dict(os.environ)
{call}
sys.exit("as it was" if before == dict(os.environ) else "changed")
"""


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("commands.main()", "own"),
        ("commands.main(['--help'])", "as it was"),
        ("import demucs_lightning.commands.separate", "as it was"),
        ("runpy.run_path('train.py', run_name='__main__')", "own"),
        ("runpy.run_path('test.py', run_name='__main__')", "own"),
        ("runpy.run_path('train.py', run_name='imported')", "as it was"),
    ],
)
def test_whose_process_it_is(call, said):
    command = [sys.executable, "-c", PROGRAM.format(call=call), "--help"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=env)
    assert done.stderr.strip() == said


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_the_choice_of_the_user_stays(monkeypatch, name):
    monkeypatch.setenv(name, "")
    monkeypatch.setattr(allocator, "_keepers", allocator._Keepers())
    assert not allocator.keep_freed_memory()


@pytest.mark.parametrize(
    ("system", "chosen", "expected"),
    [
        ("linux", {}, "expandable_segments:True"),
        ("linux", {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, "backend:native"),
        ("linux", {"PYTORCH_ALLOC_CONF": "backend:native"}, None),
        ("linux", {"PYTORCH_HIP_ALLOC_CONF": ""}, None),
        ("win32", {}, None),
        ("darwin", {}, None),
    ],
)
def test_memory_of_a_gpu_lies_in_segments_that_grow(monkeypatch, system, chosen, expected):
    environment = dict(chosen)
    monkeypatch.setattr(allocator.os, "environ", environment)
    monkeypatch.setattr(allocator.sys, "platform", system)
    monkeypatch.setattr(allocator, "keep_freed_memory", lambda: False)
    allocator.own_process()
    assert environment.get("PYTORCH_CUDA_ALLOC_CONF") == expected


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_systems_without_it(monkeypatch, error):
    def load(name):
        raise error

    for name in filter(chosen, list(os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.setattr(allocator.ctypes, "CDLL", load)
    monkeypatch.setattr(allocator, "_keepers", allocator._Keepers())
    assert not allocator.keep_freed_memory()
