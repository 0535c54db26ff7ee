"""Stops a run whose loss is no longer a number, before such weights reach a checkpoint."""

from typing import Any

import torch
from lightning import Callback, Trainer
from torch import Tensor, distributed


class NonFiniteLoss(ValueError):
    """The loss or a weight is NaN or infinite."""


class FiniteGuard(Callback):
    """Raises NonFiniteLoss with the step and the tracks of its batch.

    On the CPU at once, before the weights move. On a GPU the flag is read when the next step
    begins, and before anything is saved or validated: the host never waits for the step that is
    running. All processes stop at the same step, and name the tracks of the one whose loss it was.
    """

    def __init__(self) -> None:
        self.tracks: list[str] = []
        self.flags: Tensor | None = None  # finite here, finite everywhere
        self.where = ""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        self.check()
        self.tracks = batch["track"]
        place = f"epoch {trainer.current_epoch + 1}, batch {batch_idx + 1}"
        self.where = f"step {trainer.global_step + 1} ({place})"

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: Tensor) -> None:
        here = everywhere = loss.detach().isfinite().float()
        if trainer.world_size > 1:
            everywhere = here.clone()
            distributed.all_reduce(everywhere, op=distributed.ReduceOp.MIN)
        self.flags = torch.stack([here, everywhere])
        if self.flags.device.type == "cpu":
            self.check()
        elif self.flags.device.type == "cuda":
            self.flags = self.flags.to("cpu", non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.check()

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.check()

    def check(self) -> None:
        """Raise if the last step had a loss that was not finite."""
        if self.flags is None:
            return
        flags, self.flags = self.flags, None
        if hasattr(self, "event"):
            self.event.synchronize()
        here, everywhere = flags.tolist()
        if everywhere:
            return
        tracks = [] if here else self.tracks
        if distributed.is_initialized():
            parts: list[list[str]] = [[] for _ in range(distributed.get_world_size())]
            distributed.all_gather_object(parts, tracks)
            tracks = [track for part in parts for track in part]
        raise NonFiniteLoss(
            f"The loss of {self.where} is not finite, tracks: {', '.join(dict.fromkeys(tracks))}; "
            "the checkpoints stay as they were, and a lower optim.lr, optim.clip_grad=1 or "
            "trainer.precision=32 may help."
        )
