"""The progress bar: one bar for the whole run, and one line for each epoch."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

log = logging.getLogger(__name__)

PERIOD = 0.5  # seconds between two readings of the loss, each of which waits for the GPU

LOOK: dict[str, Any] = {"unit": "batch", "leave": False, "smoothing": 0.05}


class Progress(ProgressBar):
    """Loss, speed and the time that remains, of all epochs together; on a terminal only.

    What stays on the screen and in the log is a line for each epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bar: tqdm | None = None
        self.shown_at = self.started_at = 0.0
        self.first = 0
        self.enabled = True

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        before = trainer.current_epoch * int(self.total_train_batches)
        self.first = before + trainer.fit_loop.batch_idx + 1
        hidden = None if self.enabled else True  # None: shown on a terminal
        self.bar = tqdm(total=_batches(trainer), initial=self.first, disable=hidden, **LOOK)
        self.started_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.bar is None or self.bar.disable:
            return
        self.bar.update()
        if time.monotonic() - self.shown_at > PERIOD:
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self.bar.set_description(epoch, refresh=False)
            self.bar.set_postfix(loss=f"{float(outputs['loss']):.4f}")
            self.shown_at = time.monotonic()

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if self.bar is not None and batch:
            count = trainer.num_val_batches[0]
            self.bar.set_postfix_str(f"validation {batch_idx + 1}/{count}: {batch['track'][0]}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        done = (trainer.current_epoch + 1) * int(self.total_train_batches)
        pace = (time.monotonic() - self.started_at) / max(1, done - self.first)
        left = tqdm.format_interval(int(pace * max(0, _batches(trainer) - done)))
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        with tqdm.external_write_mode():  # the line goes above the bar
            within = self.first > trainer.current_epoch * int(self.total_train_batches)
            parts = _summary(trainer.callback_metrics, " since the resume" if within else "")
            log.info(" · ".join([epoch, *parts, f"{left} left"]))

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _summary(metrics: Mapping[str, Any], of_what: str) -> list[str]:
    """``of_what`` says which steps of the epoch the training loss is the mean of, if not all."""
    losses = (("loss", "train/loss", of_what), ("valid loss", "valid/loss", ""))
    parts = [
        f"{name} {float(metrics[key]):.4f}{steps}" for name, key, steps in losses if key in metrics
    ]
    for key, value in metrics.items():
        if key.startswith("valid/nsdr"):
            name = key.removeprefix("valid/").replace("_", " ")
            parts.append(f"{name} {float(value):.2f}")
    return parts


def _batches(trainer: Trainer) -> int:
    """Of the whole run."""
    by_epochs = (trainer.max_epochs or 0) * int(trainer.num_training_batches)
    by_steps = trainer.max_steps * trainer.accumulate_grad_batches
    return min((count for count in (by_epochs, by_steps) if count > 0), default=0)
