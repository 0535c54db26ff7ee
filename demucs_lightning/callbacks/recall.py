"""Fills the remix pool again where a run is continued within an epoch."""

from typing import Any

from lightning import Callback


class Recall(Callback):
    """Lets the augmentation see the batches before the one that comes, if it remembers some and has
    not seen them: they are read and augmented again, as they were. An epoch starts from nothing.
    """

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        pool = getattr(pl_module.augment, "pool", None)
        if pool is None:
            return
        if pool.position != (trainer.current_epoch, batch_idx):
            pool.forget()
            count = -(-pool.size // len(batch["stems"]))
            for earlier in range(max(0, batch_idx - count), batch_idx):
                again = trainer.datamodule.training_batch(trainer.current_epoch, earlier)
                pl_module.augmented(trainer.strategy.batch_to_device(again), earlier)
        pool.position = (trainer.current_epoch, batch_idx + 1)
