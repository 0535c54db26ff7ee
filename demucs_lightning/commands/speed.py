"""What makes a run fast: the precision that ``trainer.precision=auto`` stands for, TF32, and
``compile``.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from demucs_lightning.commands import hardware, processes
from demucs_lightning.compiled import Compiled

log = logging.getLogger(__name__)

BEFORE = "32-true"  # of checkpoints that do not say


def settled(cfg: DictConfig, checkpoint: Mapping[str, Any]) -> DictConfig:
    """The settings with a precision in place of ``auto``: that of ``checkpoint``, the content of
    ``resume_checkpoint`` or empty, else the one of this machine.
    """
    value = cfg.trainer.precision
    if value == "auto" and checkpoint:
        value = checkpoint.get("demucs_lightning", {}).get("precision", BEFORE)
    name = hardware.precision(value, *processes.computing(cfg))
    if str(value).startswith("16") and name == hardware.PRECISIONS["bf16"]:
        log.warning("trainer.precision=16: a CPU has no mixed fp16 and takes bf16 instead.")
    cfg = cfg.copy()
    cfg.trainer.precision = hardware.word(name)
    return cfg


def allow_tf32(kind: str) -> None:
    """Let a GPU take products of fp32 in TF32, as its convolutions are anyway."""
    if kind == "gpu":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True


def compiled(model: nn.Module, cfg: DictConfig) -> Callable[[Tensor], Tensor] | None:
    """What a training step calls in place of ``model``; None: the model itself."""
    return Compiled(model, str(cfg.compile).lower()) if cfg.compile else None
