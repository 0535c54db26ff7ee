"""What a benchmark says first: the machine it ran on and the versions it ran with."""

import os
import platform
from datetime import date
from pathlib import Path
from types import ModuleType

import torch

from demucs_lightning.separator.hardware import devices_of


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe(device: str, *modules: ModuleType) -> str:
    """Two lines: date, processor and threads; versions of Python, torch and ``modules``. Raises
    ValueError for a device that this machine lacks.
    """
    (found,) = devices_of(device)
    name = torch.cuda.get_device_name(found) if found.type == "cuda" else cpu_model()
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    versions += [f"{module.__name__} {module.__version__}" for module in modules]
    return f"machine   {name}, {threads}, {date.today()}\nversions  {', '.join(versions)}"
