"""What to say where memory ran out: what takes less than these settings, the greatest saving first.

How much a setting saves is estimated from the figures of one network. They decide the order, and
leave out what would change nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from demucs_lightning.commands import hardware
from demucs_lightning.models.recompute import MEMORY
from demucs_lightning.scale.launch import current

BEGINNING = "The device ran out of memory"
OUT_OF_MEMORY = f"{BEGINNING}: a shorter segment or a smaller batch takes less."

NONE = "a smaller model or a larger device is needed"

# MB that HDemucs keeps of a second of stereo for its backward pass (benchmarks/NOTES.md): in 16
# bits, in 32.
KEPT = {"fast": (87, 188), "balanced": (39, 92), "low": (13, 26)}
WEIGHTS = 84  # millions, of HDemucs
STATES = {"fp32": 8.0, "bf16": 4.0, "8bit": 2.1}  # bytes a weight of Adam's averages
LOW_MEMORY = {"batch_size": 1, "memory": "low", "optim.state": "bf16"}  # of conf/experiment
SHORT = 6  # seconds of a segment


@dataclass(frozen=True)
class Need:
    """What the memory of a training step depends on; ``seconds`` are those that augmentation
    leaves, ``shares`` are processes that divide the model.
    """

    batch: int
    seconds: float
    bits: int
    memory: str
    state: str
    shares: int = 1

    def megabytes(self) -> float:
        """A rough size, of HDemucs; what counts is which of two is greater."""
        narrow, wide = KEPT[self.memory]
        kept = narrow if self.bits == 16 else wide * self.bits / 32
        size = self.bits / 8 if self.bits == 64 else 4
        constant = WEIGHTS * (2 * size + STATES[self.state] * size / 4)  # and gradients
        return self.batch * self.seconds * kept + constant / self.shares


def out_of_memory(cfg: Any, experiment: str | None = None) -> str:
    """The sentence for a training of the settings ``cfg`` with the overlay ``experiment``."""
    from demucs_lightning.commands.speed import accelerator  # loads what a separation needs not

    device = accelerator(cfg)
    precision = hardware.precision(cfg.trainer.precision, device)
    memory = cfg.model.get("memory")
    need = Need(
        batch=cfg.batch_size,
        seconds=_heard(cfg, cfg.segment),
        bits=int(precision.removeprefix("bf").partition("-")[0]),
        memory=memory or "fast",
        state=cfg.optim.state,
        shares=_processes() if cfg.trainer.strategy == "fsdp" else 1,
    )
    ways = [*_overlay(cfg, need, experiment), *_steps(cfg, need, device, recomputes=bool(memory))]
    less = [(other.megabytes(), way) for way, other in ways]
    less = sorted((size, way) for size, way in less if size < need.megabytes())
    here = {"batch_size": cfg.batch_size, "segment": cfg.segment}
    here |= {"trainer.precision": _word(precision), "optim.state": cfg.optim.state}
    here |= {"memory": memory} if memory else {}
    listed = ", ".join(f"{key}={value}" for key, value in here.items())
    advice = f"try {', '.join(way for _, way in less)}" if less else NONE
    return f"{BEGINNING} with {listed}: {advice}."


def _overlay(cfg: Any, need: Need, experiment: str | None) -> Iterator[tuple[str, Need]]:
    if experiment == "low_memory" or not _free_state(cfg):
        return
    lower: Any = {"batch": LOW_MEMORY["batch_size"], "memory": LOW_MEMORY["memory"]}
    if replace(need, **lower) == need:
        return
    state = LOW_MEMORY["optim.state"] if need.state == "fp32" else need.state
    yield "experiment=low_memory", replace(need, **lower, state=state)


def _steps(cfg: Any, need: Need, device: str, *, recomputes: bool) -> Iterator[tuple[str, Need]]:
    """One setting at a time, and what it makes of ``need``, also where that is not less."""
    for name in MEMORY if recomputes else ():
        yield f"memory={name}", replace(need, memory=name)
    if cfg.batch_size > 1:
        yield _halved(cfg), replace(need, batch=cfg.batch_size // 2)
    if (left := _heard(cfg, SHORT)) > 0:
        cut = f" (augmentation leaves {left:g} s)" if left < SHORT else ""
        yield f"segment={SHORT}{cut}", replace(need, seconds=left)
    narrow = _narrow(device)
    if cfg.trainer.strategy != "fsdp" or narrow == "bf16":
        yield f"trainer.precision={narrow}", replace(need, bits=16)
    for state in STATES if _free_state(cfg) else ():
        yield f"optim.state={state}", replace(need, state=state)
    # As processes.py asks for.
    fits = need.bits == 32 or str(cfg.trainer.precision).startswith(("bf16", "auto"))
    goes = need.state == "fp32" and fits and not cfg.compile and not cfg.svd.penalty
    if goes and device == "gpu" and cfg.trainer.strategy != "fsdp":
        yield _divided(cfg), replace(need, shares=_processes())


def _free_state(cfg: Any) -> bool:
    """Whether ``optim.state`` may change: a run that is continued keeps its own, and fsdp has one
    form of it.
    """
    return cfg.trainer.strategy != "fsdp" and cfg.resume_checkpoint is None


def _heard(cfg: Any, segment: float) -> float:
    return segment - (cfg.augment.shift if cfg.data_augmentation else 0)


def _halved(cfg: Any) -> str:
    half, group = cfg.batch_size // 2, cfg.augment.remix.group_size
    fits = not cfg.data_augmentation or not group or half % group == 0
    return f"batch_size={half}" + ("" if fits else f" augment.remix.group_size={half}")


def _narrow(device: str) -> str:
    """The 16 bits that the device computes in."""
    try:
        hardware.precision("bf16", device)
    except ValueError:
        return "16"
    return "bf16"


def _divided(cfg: Any) -> str:
    alone = cfg.gpus == 1 or (not isinstance(cfg.gpus, int) and len(cfg.gpus) == 1)
    more = f" gpus={_processes()}" if alone and not current().by else ""
    return f"trainer.strategy=fsdp{more}"


def _processes() -> int:
    launch = current()
    return launch.world if launch.by else max(1, torch.cuda.device_count())


def _word(precision: str) -> str:
    words = {lightnings: word for word, lightnings in hardware.PRECISIONS.items()}
    return words[precision]
