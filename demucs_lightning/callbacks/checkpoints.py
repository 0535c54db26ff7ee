"""Checkpoints: written whole or not at all, between two steps, and on the way out."""

import logging
import math
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from demucs_lightning.callbacks.finite import NonFiniteLoss
from demucs_lightning.scale.sharding import is_sharded

log = logging.getLogger(__name__)


class AtomicIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a kill or a full disk leaves the former file as
    it was.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        target = Path(path)
        part = target.with_name(target.name + ".part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        except (OSError, RuntimeError) as error:
            # torch has a RuntimeError of its own for a write that failed.
            reason = error if isinstance(error, OSError) else error.__context__
            if not isinstance(reason, OSError):
                raise
            kept = ", the checkpoint there stays as it was" if target.exists() else ""
            raise OSError(reason.errno, f"{reason.strerror}{kept}", str(target)) from error
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> Any:
        return torch.load(path, map_location=map_location, weights_only=True)


class Checkpoints(Checkpoint):
    """Keeps ``last.ckpt`` and ``best.ckpt``, the one of the greatest (or least, by ``mode``)
    ``monitor``, in ``folder``.

    ``last.ckpt`` is written after validation, at the end of an epoch and of training, every
    ``every_n_steps`` steps and ``every_n_minutes`` minutes (0: don't), when ``Stopping`` or any
    other exception ends the run; always between two steps, so that the run can continue as if it
    had not stopped. Of several processes the first one writes, also where another has died.
    ``written`` says whether this run has written any.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        monitor: str = "valid/nsdr",
        mode: str = "max",
        every_n_steps: int = 0,
        every_n_minutes: float = 0.0,
    ) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"checkpoint.mode is {mode!r}: it must be max or min.")
        self.last, self.best = Path(folder) / "last.ckpt", Path(folder) / "best.ckpt"
        self.monitor, self.sign = monitor, 1 if mode == "max" else -1
        self.every_n_steps, self.seconds = every_n_steps, every_n_minutes * 60
        self.best_score, self.best_path = -math.inf, ""
        self.saved: Any = None
        self.written = False
        self.saved_at = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_path": self.best_path}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_score, self.best_path = state["best_score"], state["best_path"]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.saved, self.saved_at = pl_module.position, time.monotonic()
        if trainer.is_global_zero:
            for path in (self.last, self.best):  # of a run that was killed while it wrote
                path.with_name(path.name + ".part").unlink(missing_ok=True)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        # Lightning counts the step twice for the loggers if the run continued at a validation.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        by_step = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        if by_step or self._is_time(trainer, batch_idx):
            self.save(trainer, pl_module)

    def _is_time(self, trainer: Any, batch_idx: int) -> bool:
        due = 0 < self.seconds < time.monotonic() - self.saved_at
        if trainer.world_size == 1 or not self.seconds:
            return due
        # All processes must agree, which costs too much to do at every step.
        return batch_idx % 50 == 0 and bool(trainer.strategy.broadcast(due))

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            known = ", ".join(key for key in trainer.callback_metrics if key.startswith("valid"))
            raise ValueError(f"checkpoint.monitor is {self.monitor!r}: it must be one of {known}.")
        score = self.sign * float(value)
        if better := score > self.best_score:
            self.best_score, self.best_path = score, str(self.best.absolute())
        self._save(trainer, pl_module, self.best if better else self.last)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.save(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        begun = self.saved is not None and pl_module.position is not None
        if not begun or isinstance(exception, NonFiniteLoss):
            return
        # Processes stop together on a signal; by any other exception, this one is on its own.
        together = trainer.world_size == 1 or isinstance(exception, SIGTERMException)
        if not together and (not trainer.is_global_zero or is_sharded(trainer)):
            return
        try:
            self.save(trainer, pl_module, alone=not together)
        except (OSError, NonFiniteLoss) as error:  # what ends the run is to be told, not this
            reason = getattr(error, "strerror", None) or error
            if reason != getattr(exception, "strerror", None):
                log.warning("%s was not written: %s", self.last, reason)

    def save(self, trainer: Trainer, pl_module: Any, *, alone: bool = False) -> None:
        """Write ``last.ckpt`` unless it is up to date; ``alone``: the other processes don't come
        here.
        """
        if pl_module.position != self.saved:
            self._save(trainer, pl_module, self.last, alone=alone)

    def _save(self, trainer: Any, pl_module: Any, path: Path, *, alone: bool = False) -> None:
        weights = pl_module.state_dict().items()
        if broken := [name for name, value in weights if not _local(value).isfinite().all()]:
            raise NonFiniteLoss(f"{broken[0]} is no longer finite: {path} stays as it was.")
        if alone:
            content = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.save_checkpoint(content, path)
        else:
            trainer.save_checkpoint(path)
        if path != self.last and trainer.is_global_zero:
            link(path, self.last)
        self.saved, self.saved_at = pl_module.position, time.monotonic()
        self.written = True


def _local(value: Any) -> Tensor:
    """Of a tensor that is divided among the processes, the part that is here."""
    return value.to_local() if hasattr(value, "to_local") else value


def link(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``, or a copy where the file system has no links."""
    part = target.with_name(target.name + ".part")
    part.unlink(missing_ok=True)
    try:
        part.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, part)
    part.replace(target)
