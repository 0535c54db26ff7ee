"""What to say where memory ran out: what takes less than these settings, the greatest saving first.

How much a setting saves is an estimate: what the network at hand keeps for its backward pass, by
its class and its width, and its weights, counted.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from demucs_lightning.commands import hardware
from demucs_lightning.models.recompute import MEMORY
from demucs_lightning.scale.launch import current

BEGINNING = "The device ran out of memory"
OUT_OF_MEMORY = f"{BEGINNING}: a shorter segment or a smaller batch takes less."

NONE = "a smaller model or a larger device is needed"

# MB that the networks keep of a second of stereo for their backward pass, in 16 bits and in 32
# (benchmarks/memory.py), in proportion to the channels of the first layer; others are taken for
# HDemucs.
KEPT = {
    "Demucs": (64, {"fast": (87, 199), "balanced": (44, 113), "low": (11, 23)}),
    "HDemucs": (48, {"fast": (87, 186), "balanced": (39, 91), "low": (13, 26)}),
    "HTDemucs": (48, {"fast": (98, 195), "balanced": (37, 74), "low": (15, 30)}),
}
RATE = 44100
STATES = {"fp32": 8.0, "bf16": 4.0, "8bit": 2.1}  # bytes a weight of Adam's averages
LOW_MEMORY = {"batch_size": 1, "memory": "low", "optim.state": "bf16"}  # of conf/experiment
SHORT = 6  # seconds of a segment
WAYS = 4  # at most, for a sentence that can be read


@dataclass(frozen=True)
class Network:
    """What a network keeps, of KEPT, and by which factor; and its weights, in millions."""

    kept: Mapping[str, tuple[float, float]]
    scale: float
    weights: float


@dataclass(frozen=True)
class Need:
    """What the memory of a training step depends on; ``seconds`` are those that augmentation
    leaves, ``shares`` are processes that divide the model.
    """

    network: Network
    batch: int
    seconds: float
    bits: int
    memory: str
    state: str
    shares: int = 1

    def megabytes(self) -> float:
        """An estimate: what is kept for backward, weights, gradients and Adam's averages."""
        narrow, wide = self.network.kept[self.memory]
        kept = self.network.scale * (narrow if self.bits == 16 else wide * self.bits / 32)
        size = self.bits / 8 if self.bits == 64 else 4
        constant = self.network.weights * (2 * size + STATES[self.state] * size / 4)
        return self.batch * self.seconds * kept + constant / self.shares


def out_of_memory(cfg: Any, experiment: str | None = None) -> str:
    """The sentence for a training of the settings ``cfg`` with the overlay ``experiment``."""
    from demucs_lightning.commands.processes import computing  # loads what a separation needs not

    computed = computing(cfg)
    precision = hardware.precision(cfg.trainer.precision, *computed)
    memory = cfg.model.get("memory")
    need = Need(
        network=_network(cfg),
        batch=cfg.batch_size,
        seconds=_heard(cfg, cfg.segment),
        bits=int(precision.removeprefix("bf").partition("-")[0]),
        memory=memory or "fast",
        state=cfg.optim.state,
        shares=_processes() if cfg.trainer.strategy == "fsdp" else 1,
    )
    ways = [*_overlay(cfg, need, experiment), *_steps(cfg, need, computed, recomputes=bool(memory))]
    saved = [(need.megabytes() - other.megabytes(), way) for way, other in ways]
    best = sorted((way for way in saved if way[0] > 0), reverse=True)[:WAYS]
    here = {"batch_size": cfg.batch_size, "segment": cfg.segment}
    here |= {"trainer.precision": hardware.word(precision), "optim.state": cfg.optim.state}
    here |= {"memory": memory} if memory else {}
    listed = ", ".join(f"{key}={value}" for key, value in here.items())
    tries = ", ".join(f"{way} (about {_rounded(size)} MB less)" for size, way in best)
    return f"{BEGINNING} with {listed}: {f'try, by estimate, {tries}' if best else NONE}."


def _network(cfg: Any) -> Network:
    """The network of the settings, built without memory to count its weights."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    own = cfg.model._target_.rpartition(".")[2]
    channels, kept = KEPT.get(own, KEPT["HDemucs"])
    try:
        with torch.device("meta"):
            weights = sum(value.numel() for value in instantiate(cfg.model).parameters()) / 1e6
    except InstantiationException:  # a class of the user's that can't be built so
        weights = 0.0
    scale = cfg.model.get("channels", channels) / channels * cfg.samplerate / RATE
    return Network(kept, scale, weights)


def _rounded(size: float) -> str:
    """To two digits, which is more than an estimate is good for."""
    return f"{max(1, float(f'{size:.2g}')):,.0f}"


def _overlay(cfg: Any, need: Need, experiment: str | None) -> Iterator[tuple[str, Need]]:
    if experiment == "low_memory" or not _free_state(cfg):
        return
    lower: Any = {"batch": LOW_MEMORY["batch_size"], "memory": LOW_MEMORY["memory"]}
    if replace(need, **lower) == need:
        return
    state = LOW_MEMORY["optim.state"] if need.state == "fp32" else need.state
    yield "experiment=low_memory", replace(need, **lower, state=state)


def _steps(
    cfg: Any, need: Need, computed: tuple[str, Any], *, recomputes: bool
) -> Iterator[tuple[str, Need]]:
    """One setting at a time, and what it makes of ``need``, also where that is not less."""
    for name in MEMORY if recomputes else ():
        yield f"memory={name}", replace(need, memory=name)
    if cfg.batch_size > 1:
        yield _halved(cfg), replace(need, batch=cfg.batch_size // 2)
    if (left := _heard(cfg, SHORT)) > 0:
        yield f"segment={SHORT}", replace(need, seconds=left)
    narrow = _narrow(*computed)
    if cfg.trainer.strategy != "fsdp" or narrow == "bf16":
        yield f"trainer.precision={narrow}", replace(need, bits=16)
    for state in STATES if _free_state(cfg) else ():
        yield f"optim.state={state}", replace(need, state=state)
    # As processes.py asks for.
    fits = need.bits == 32 or str(cfg.trainer.precision).startswith(("bf16", "auto"))
    goes = need.state == "fp32" and fits and not cfg.compile and not cfg.svd.penalty
    if goes and computed[0] == "gpu" and cfg.trainer.strategy != "fsdp":
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


def _narrow(accelerator: str, devices: Any) -> str:
    """The 16 bits that the devices compute in."""
    try:
        hardware.precision("bf16", accelerator, devices)
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
