"""How the weights are moved, optimizer, learning rate over time, clipping, and how they are
averaged.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from demucs_lightning.ema import ModelEMA
from demucs_lightning.moments import STATES, LeanAdam

log = logging.getLogger(__name__)

OPTIMIZERS: dict[str, type[Optimizer]] = {"adam": Adam, "adamw": AdamW}
FUSED = ("cpu", "cuda")
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class Optimization:
    """The settings ``optim.*``; raises ValueError with the key of one that is out of its range.

    ``transformer_lr`` and ``transformer_weight_decay`` are for the transformer of a model that has
    one, and stand for what the model itself says; None: as the model says.
    """

    optim: str = "adam"
    lr: float = 3e-4
    betas: Sequence[float] = (0.9, 0.999)
    weight_decay: float = 0.0
    loss: str = "l1"
    clip_grad: float = 0.0
    schedule: str = "constant"
    warmup: int = 0
    transformer_lr: float | None = None
    transformer_weight_decay: float | None = None
    state: str = "fp32"

    def __post_init__(self) -> None:
        _require(
            self.optim in OPTIMIZERS, f"optim.optim is {self.optim!r}: it must be adam or adamw."
        )
        for name in ("lr", "transformer_lr"):
            value = getattr(self, name)
            positive = value is None or (isinstance(value, int | float) and value > 0)
            _require(positive, f"optim.{name} is {value}: it must be above 0.")
        proper = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _require(
            proper, f"optim.betas is {list(self.betas)}: it must be two numbers of 0 to below 1."
        )
        for name in ("weight_decay", "transformer_weight_decay", "clip_grad", "warmup"):
            value = getattr(self, name)
            proper = value is None or (isinstance(value, int | float) and value >= 0)
            _require(proper, f"optim.{name} is {value}: it must be 0 or more.")
        _require(self.loss in ("l1", "mse"), f"optim.loss is {self.loss!r}: it must be l1 or mse.")
        known = self.state in STATES
        _require(known, f"optim.state is {self.state!r}: it must be one of {', '.join(STATES)}.")
        known = self.schedule in SCHEDULES
        _require(known, f"optim.schedule is {self.schedule!r}: it must be constant or cosine.")

    def optimizer(self, model: nn.Module, *, fused: bool = True) -> Optimizer:
        """Over all parameters of ``model``, in the groups that its method ``parameter_groups``
        makes, if it has one: the values of a group go before those of ``optim.*``.

        ``fused``: in one pass over the weights, where their device has that.
        """
        grouped: Any = getattr(model, "parameter_groups", None)
        groups = grouped() if grouped else [{"params": list(model.parameters())}]
        own = {"lr": self.transformer_lr, "weight_decay": self.transformer_weight_decay}
        own = {name: value for name, value in own.items() if value is not None}
        if own and not any(_is_transformer(group) for group in groups):
            log.warning(
                "optim.transformer_%s has no effect: %s has no transformer",
                next(iter(own)),
                type(model).__name__,
            )
        groups = [{**group, **own} if _is_transformer(group) else group for group in groups]
        values: Any = {"lr": self.lr, "betas": tuple(self.betas), "weight_decay": self.weight_decay}
        if self.state != "fp32":
            return LeanAdam(groups, **values, decoupled=self.optim == "adamw", state=self.state)
        kind: Any = OPTIMIZERS[self.optim]
        fused = fused and all(weight.device.type in FUSED for weight in model.parameters())
        return kind(groups, **values, fused=fused or None)

    def check_resumed(self, states: Sequence[dict[str, Any]]) -> None:
        """Raise ValueError unless the states of optimizers, from a checkpoint, are of this form."""
        kept = {
            "8bit" if "codes" in each else str(each["exp_avg"].dtype).removeprefix("torch.")
            for state in states
            for each in state["state"].values()
        }
        form = {"bfloat16": "bf16", "8bit": "8bit"}.get(next(iter(kept), ""), "fp32")
        _require(
            not kept or form == self.state,
            f"optim.state is {self.state}, but the run that resume_checkpoint is of had {form}: "
            f"set optim.state={form}.",
        )

    def scheduler(self, optimizer: Optimizer, total: Callable[[], float]) -> LambdaLR:
        """The learning rate by step; ``total()`` gives the steps of the run, once it began."""

        def factor(step: int) -> float:
            return self.factor(step, total() if step else math.inf)

        return LambdaLR(optimizer, factor)

    def factor(self, step: int, total: float) -> float:
        """What ``lr`` is multiplied with after ``step`` of ``total`` steps."""
        warm = min(1.0, (step + 1) / (self.warmup + 1))
        if self.schedule == "constant" or math.isinf(total):
            return warm
        return warm * (1 + math.cos(math.pi * min(1.0, step / total))) / 2


def steps_of(trainer: Any) -> float:
    """Optimizer steps from the start of a run to its end."""
    in_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    limits = (trainer.max_steps, in_epoch * (trainer.max_epochs or -1))
    return min((limit for limit in limits if limit > 0), default=math.inf)


def averages(epoch: Sequence[float] = (), batch: Sequence[float] = ()) -> dict[str, ModelEMA]:
    """The averages that the settings ``ema.*`` ask for, by names such as ``ema_epoch_0.9``."""
    decays = [("epoch", decay) for decay in epoch] + [("batch", decay) for decay in batch]
    return {f"ema_{unit}_{decay}": ModelEMA(decay) for unit, decay in decays}


def _is_transformer(group: dict[str, Any]) -> bool:
    return group.get("name") == "transformer"


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)
