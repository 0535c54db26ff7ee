"""How many processes a run has and what they share: ``gpus``, ``trainer.num_nodes`` and
``trainer.strategy`` in the words of Lightning.
"""

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from omegaconf import DictConfig

from demucs_lightning.callbacks import AtomicIO
from demucs_lightning.commands import hardware
from demucs_lightning.scale import Launch, current
from demucs_lightning.scale.launch import SRUN
from demucs_lightning.scale.strategies import Replicated, Sharded

log = logging.getLogger(__name__)

DDP = {"ddp": {}, "ddp_find_unused_parameters_true": {"find_unused_parameters": True}}
STRATEGIES = ("auto", *DDP, "fsdp")


def arguments(cfg: DictConfig) -> dict[str, Any]:
    """``accelerator``, ``devices``, ``num_nodes``, ``strategy`` and ``plugins`` of a Trainer.

    Raises ValueError where the settings ask for something else than was started, or than this
    machine can do.
    """
    launch = current()
    accelerator, devices = computing(cfg)
    machines = _machines(launch, cfg.trainer.num_nodes)
    count = _number(devices) * machines
    missed = accelerator != "gpu" and not cfg.trainer.accelerator and _number(cfg.gpus) > 1
    if missed and count == 1:
        log.warning(
            "gpus=%s: this machine has no such GPUs, and one process computes on its %s.",
            *(cfg.gpus, accelerator.upper()),
        )
    return {
        "accelerator": accelerator,
        "devices": devices,
        "num_nodes": machines,
        "strategy": _strategy(cfg, accelerator, count),
        "plugins": [AtomicIO(), *([SLURMEnvironment(False)] if launch.by == SRUN else [])],
    }


def computing(cfg: DictConfig) -> tuple[str, int | Sequence[int]]:
    """Lightning's name for what this machine computes on, and how many or which of them.

    Raises ValueError for devices that are not there, or not those that were started.
    """
    launch = current()
    gpus = cfg.gpus if isinstance(cfg.gpus, int) else list(cfg.gpus)
    if launch.by:
        gpus = _of_launch(launch, gpus, cfg.trainer.devices)
    found = hardware.devices(gpus)
    accelerator = hardware.accelerator(cfg.trainer.accelerator, found["accelerator"])
    if launch.by and accelerator == "cpu":
        return accelerator, launch.processes
    if cfg.trainer.devices:
        return accelerator, cfg.trainer.devices
    return accelerator, found["devices"] if accelerator == found["accelerator"] else 1


def _number(devices: int | Sequence[int]) -> int:
    return devices if isinstance(devices, int) else len(devices)


def _of_launch(launch: Launch, gpus: Any, devices: Any) -> Any:
    """The GPUs of a machine: as many as processes were started there."""
    asked = {"trainer.devices": devices} if devices else {"gpus": gpus}
    for key, value in asked.items():
        if _number(value) not in (0, 1, launch.processes):
            raise ValueError(
                f"{key}={value}, but {launch.by} has started {launch.processes} "
                f"{'process' if launch.processes == 1 else 'processes'} on each machine: one for "
                f"each GPU, so leave {key} out or start as many."
            )
    single = gpus == 1 or (isinstance(gpus, list) and len(gpus) < launch.processes)
    return launch.processes if single else gpus


def _machines(launch: Launch, asked: int) -> int:
    if launch.by and asked not in (1, launch.machines):
        raise ValueError(
            f"trainer.num_nodes={asked}, but {launch.by} runs on {launch.machines}: leave it out."
        )
    if not launch.by and asked != 1:
        raise ValueError(
            f"trainer.num_nodes={asked}: start the run on every machine, with torchrun or srun, as "
            "docs/torchrun.md and docs/slurm.md say."
        )
    return launch.machines


def _strategy(cfg: DictConfig, accelerator: str, count: int) -> Any:
    name, timeout = cfg.trainer.strategy, timedelta(minutes=cfg.distributed.timeout)
    if name not in STRATEGIES:
        raise ValueError(
            f"trainer.strategy is {name!r}: it must be one of {', '.join(STRATEGIES)}."
        )
    if name == "auto" and count == 1:
        return "auto"
    if accelerator == "mps":
        raise ValueError(
            f"trainer.strategy is {name}: MPS has one device, leave it out or set gpus=0."
        )
    if name == "fsdp":
        _check_fsdp(cfg, count)
        return Sharded(timeout=timeout)
    return Replicated(timeout=timeout, **DDP.get(name, {}))


def _check_fsdp(cfg: DictConfig, count: int) -> None:
    precision = hardware.precision(cfg.trainer.precision, *computing(cfg))
    for wrong, sentence in (
        (count == 1, "it divides a model among processes, and this run has one: take several GPUs"),
        (precision in ("16-mixed", "64-true"), "it computes in 32 or bf16: set trainer.precision"),
        (cfg.svd.penalty > 0, "svd.penalty needs whole weights: set it to 0"),
        (
            cfg.optim.state != "fp32",
            "it divides the optimizer's state itself: set optim.state=fp32",
        ),
        (cfg.compile, f"it does not go with compile={str(cfg.compile).lower()}: set compile=false"),
    ):
        if wrong:
            raise ValueError(f"trainer.strategy is fsdp: {sentence}, or leave fsdp out.")
