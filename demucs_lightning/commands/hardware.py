"""What a run computes on: ``gpus`` and ``trainer.precision`` in the words of Lightning."""

from collections.abc import Sequence
from typing import Any

import torch

from demucs_lightning.separator import described
from demucs_lightning.separator.hardware import devices_of

PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}


def devices(gpus: int | Sequence[int]) -> dict[str, Any]:
    """``accelerator`` and ``devices`` of lightning.Trainer; the CPU on a machine without a GPU.

    Raises ValueError, saying what exists, for a GPU that does not.
    """
    wanted = list(range(gpus)) if isinstance(gpus, int) else list(gpus)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count and torch.backends.mps.is_available() and wanted:
        return {"accelerator": "mps", "devices": 1}
    if not count or not wanted:
        return {"accelerator": "cpu", "devices": 1}
    if missing := [index for index in wanted if index >= count]:
        raise ValueError(
            f"gpus={gpus}: there is no GPU {missing[0]}, this machine has {_named(count)}."
        )
    return {"accelerator": "gpu", "devices": wanted}


def accelerator(wanted: str | None, found: str) -> str:
    """Lightning's name for ``trainer.accelerator``: ``found`` unless one is ``wanted``.

    Raises ValueError for one that this machine does not have.
    """
    if wanted in (None, "auto"):
        return found
    cuda = wanted in ("gpu", "cuda")
    if (cuda and not torch.cuda.is_available()) or (
        wanted == "mps" and not torch.backends.mps.is_available()
    ):
        raise ValueError(
            f"trainer.accelerator is {wanted}: this machine has no such device, leave it out or "
            "set it to cpu."
        )
    return "gpu" if cuda else str(wanted)


def precision(value: str | int, accelerator: str, devices: int | Sequence[int] = 1) -> str:
    """Lightning's name for 16, bf16, 32 or 64, or for auto: bf16 where all of the ``devices``, a
    number or indices, compute in it, else 32. The CPU has no mixed fp16 and takes bf16 instead.

    Raises ValueError for anything else, and for bf16 on a GPU that does not have it.
    """
    if value == "auto":
        return PRECISIONS["bf16" if _has_bf16(accelerator, devices) else "32"]
    name = PRECISIONS.get(str(value), str(value))
    if name not in PRECISIONS.values():
        raise ValueError(f"trainer.precision is {value!r}: it must be auto, 16, bf16, 32 or 64.")
    if name == "bf16-mixed" and accelerator == "gpu" and (without := _without_bf16(devices)):
        raise ValueError(
            f"trainer.precision is {value!r}, but GPU {without[0]}, "
            f"{torch.cuda.get_device_name(without[0])}, does not compute in bf16: set it to 16 or "
            "32."
        )
    return "bf16-mixed" if name == "16-mixed" and accelerator == "cpu" else name


def word(precision: str) -> str:
    """What ``trainer.precision`` calls a precision of Lightning's."""
    return next(word for word, name in PRECISIONS.items() if name == precision)


def _has_bf16(accelerator: str, devices: int | Sequence[int]) -> bool:
    """Whether the devices have instructions for bf16: to imitate them is slower than fp32."""
    if accelerator == "gpu":
        return torch.cuda.is_available() and not _without_bf16(devices)
    units = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return accelerator == "cpu" and any(getattr(torch.cpu, unit, bool)() for unit in units)


def _without_bf16(devices: int | Sequence[int]) -> list[int]:
    """The GPUs of this machine among ``devices`` that lack such instructions. Their properties
    tell it; to ask them otherwise would open each, in every process.
    """
    if not torch.cuda.is_available() or torch.version.hip:
        return []
    indices = range(devices) if isinstance(devices, int) else devices
    return [index for index in indices if torch.cuda.get_device_properties(index).major < 8]


def check_test_device(name: str) -> None:
    """Raise ValueError unless this machine has the device of the setting ``test.device``."""
    try:
        devices_of(name)
    except ValueError as error:
        raise ValueError(f"test.{error}") from error


def device_name(trainer: Any) -> str:
    """Such as ``2 x NVIDIA H200`` or ``CPU (8 threads), no GPU found``."""
    device = trainer.strategy.root_device
    times = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    if device.type == "cuda":
        return times + torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    reason = "" if torch.cuda.is_available() else ", no GPU found"
    return f"{times}{described([device])}{reason}"


def _named(count: int) -> str:
    return "GPU 0 only" if count == 1 else f"GPUs 0 to {count - 1}"
