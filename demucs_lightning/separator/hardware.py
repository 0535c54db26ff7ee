"""What a separation computes on, and in which precision."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from demucs_lightning import pretrained
from demucs_lightning.separation import BagOfModels, on_devices, recorded

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
Computing = Callable[[], AbstractContextManager[Any]]


def devices_of(wanted: str | torch.device | Sequence[str | torch.device]) -> list[torch.device]:
    """The devices that a setting names: ``auto``, one such as ``cuda:1``, or several.

    ``auto`` is the first CUDA device, or else MPS, or else the CPU. Raises ValueError for a name
    that is none, or a device that this machine lacks.
    """
    if isinstance(wanted, str):
        wanted = wanted.split(",")
    elif not isinstance(wanted, Sequence):
        wanted = [wanted]
    if not wanted:
        raise ValueError("device is empty: it must be auto, cpu, cuda, cuda:1, mps or several.")
    return [_device(each) for each in wanted]


def _device(name: str | torch.device) -> torch.device:
    if name == "auto":
        return automatic()
    try:
        device = torch.device(name.strip() if isinstance(name, str) else name)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"device is {name!r}: it must be auto, cpu, cuda, cuda:1 or mps."
        ) from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = torch.cuda.current_device() if count and device.index is None else device.index
        if not count or index >= count:
            there = f"{count} CUDA devices" if count else "no CUDA device"
            raise ValueError(f"device is {name}: this machine has {there}.")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device is {name}: this machine has no such device.")
    return device


def automatic() -> torch.device:
    """A GPU where there is one."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def described(devices: Sequence[torch.device]) -> str:
    """Such as ``NVIDIA H200`` or ``CPU (8 threads)``."""
    first = devices[0]
    times = f"{len(devices)} x " if len(devices) > 1 else ""
    if first.type == "cuda":
        return times + torch.cuda.get_device_name(first)
    if first.type == "cpu":
        threads = torch.get_num_threads()
        return f"CPU ({threads} thread{'s' * (threads > 1)})"
    return times + first.type


def precision_of(wanted: str, device: torch.device) -> str:
    """``fp32``, ``bf16`` or ``fp16``. ``auto`` is bf16 on a CUDA device that has it, fp16 on one
    that has tensor cores for that alone, and fp32 elsewhere."""
    if wanted not in PRECISIONS:
        raise ValueError(f"precision is {wanted!r}: it must be one of {', '.join(PRECISIONS)}.")
    if wanted == "fp16" and device.type != "cuda":
        raise ValueError("precision is fp16, which is for CUDA devices: fp32 or bf16 can be here.")
    if wanted != "auto":
        return wanted
    major = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0
    return "bf16" if major >= 8 else "fp16" if major == 7 else "fp32"


def placed(model: Any, devices: Sequence[torch.device], *, precision: str, keep: bool) -> Any:
    """The model in eval mode on the devices, a model of this package in the precision itself and,
    on one CUDA device, recorded; with ``keep``, what is given stays as it is.
    """
    lowered = precision in HALF and is_own(model)
    if keep and lowered:
        model = copy.deepcopy(model)
    model = model.to(HALF[precision]) if lowered else model
    if len(devices) > 1:
        return on_devices(model, devices).eval()
    moved = _moved(model, devices[0], keep=keep and not lowered)
    return recorded(moved).eval() if devices[0].type == "cuda" and is_own(model) else moved


def _moved(model: Any, device: torch.device, *, keep: bool) -> Any:
    there = all(weights.device == device for weights in model.parameters())
    if there and not model.training:
        return model
    return (copy.deepcopy(model) if keep else model).to(device).eval()


def is_own(model: Any) -> bool:
    """Whether all networks are of this package: with weights in bf16, these compute in bf16
    between their STFT and its inverse, and in fp32 elsewhere. Other modules need autocast.
    """
    members = model.models if isinstance(model, BagOfModels) else [model]
    return all(isinstance(member, tuple(pretrained.CLASSES.values())) for member in members)


def computing(model: Any, device: torch.device, precision: str) -> Computing:
    """Makes the context that the model, as it was given, runs in."""
    if precision == "fp32" or is_own(model):
        return nullcontext
    return partial(torch.autocast, device.type, HALF[precision])
