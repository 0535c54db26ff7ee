"""All metrics of the test set every few epochs, computed by a process of its own.

Training goes on meanwhile, and whatever becomes of that process, it doesn't hurt the run.
"""

import json
import logging
import math
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from demucs_lightning.callbacks.checkpoints import link

log = logging.getLogger(__name__)

FOLDER = "tests"  # in that of the run
PERIOD = 5.0  # seconds between two looks at the process
# Beginnings of what tells a process that it is one of several, which this one isn't.
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
RANKS += ("MASTER_", "GROUP_", "ROLE_", "TORCHELASTIC_", "SLURM_")
COMMAND = (sys.executable, "-m", "demucs_lightning.commands.evaluate")


@dataclass(frozen=True)
class Started:
    """An evaluation that is under way: of which epoch, and where what it says goes."""

    epoch: int
    process: subprocess.Popen[bytes]
    checkpoint: Path
    summary: Path
    said: Path


class Evaluations(Callback):
    """Every ``every`` epochs, scores the checkpoint of that moment with the command `evaluate`.

    It runs at low priority on ``device``; results go to ``tests/epoch-N`` in ``folder``, that of
    the run, which has its settings; the table goes to the log, and the scores to the loggers. There
    is never more than one such process, and the epochs that come while it is busy are left out.
    With ``every`` 0 there is none.
    """

    def __init__(self, folder: str | Path, *, every: int, device: str) -> None:
        self.folder, self.every, self.device = Path(folder).absolute(), every, device
        self.current: Started | None = None
        self._latest = 0
        self._looked = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        # The checkpoint of an epoch is complete when the next one begins.
        self._turn(trainer, trainer.current_epoch)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.current is not None and time.monotonic() - self._looked > PERIOD:
            self._look(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._turn(trainer, trainer.current_epoch)
        self._leave()

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        self._leave()

    def _turn(self, trainer: Any, epoch: int) -> None:
        if not (self.every and trainer.is_global_zero):
            return
        self._look(trainer)
        if epoch == 0 or epoch % self.every or epoch == self._latest:
            return
        self._latest = epoch
        if self.current is not None:
            busy = self.current.epoch
            log.info("The test of epoch %d is still at work: epoch %d is not tested.", busy, epoch)
            return
        try:
            self.current = self._start(Path(trainer.checkpoint_callback.last), epoch)
        except OSError as error:
            log.warning("The test of epoch %d could not be started: %s", epoch, error)

    def _start(self, checkpoint: Path, epoch: int) -> Started:
        place = self.folder / FOLDER / f"epoch-{epoch:04d}"
        copy = place.with_suffix(".ckpt")
        copy.parent.mkdir(parents=True, exist_ok=True)
        link(checkpoint, copy)
        summary, said = place.with_suffix(".json"), place.with_suffix(".log")
        summary.unlink(missing_ok=True)
        command = [*COMMAND, str(copy), "--settings", str(self.folder / "settings.yaml")]
        command += ["-o", str(place), "-d", self.device, "--json", str(summary)]
        command += ["-j", str(max(1, (os.cpu_count() or 2) // 2)), "--nice", "--delete-model"]
        with said.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,  # Ctrl-C and a hang-up are for the run
            )
        log.info("Testing epoch %d on %s in the background: %s", epoch, self.device, said)
        return Started(epoch, process, copy, summary, said)

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(RANKS)}
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [package, kept.get("PYTHONPATH")]))
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if self.device == "cpu" else {}
        return {**kept, "PYTHONPATH": path, **hidden}

    def _look(self, trainer: Any) -> None:
        """Tell what came of the process, if it is over."""
        self._looked = time.monotonic()
        started = self.current
        if started is None or started.process.poll() is None:
            return
        self.current = None
        with suppress(OSError):
            started.checkpoint.unlink(missing_ok=True)
        try:
            summary = json.loads(started.summary.read_text(encoding="utf-8"))
            for reason in summary["failed"].values():
                log.warning("Test of epoch %d: no scores of %s", started.epoch, reason)
            log.info("Test of epoch %d:\n%s", started.epoch, summary["table"] or "no scores")
            scores = {"test/epoch": float(started.epoch), **_scores(summary)}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            code = started.process.returncode
            log.warning(
                "The test of epoch %d failed (status %s), training goes on: see %s",
                *(started.epoch, code, started.said),
            )
            return
        for logger in trainer.loggers:
            logger.log_metrics(scores, step=trainer.global_step)

    def _leave(self) -> None:
        if self.current is not None and self.current.process.poll() is None:
            epoch, said = self.current.epoch, self.current.said
            log.info("The test of epoch %d goes on; its table will be in %s", epoch, said)


def _scores(summary: dict[str, Any]) -> dict[str, float]:
    """``test/nsdr_drums`` and so on: nSDR is the mean over the tracks, SDR the median."""
    chosen = {"nsdr": summary["mean"]["nsdr"], "sdr": summary["median"]["sdr"]}
    named = {
        f"test/{metric}" if source == "overall" else f"test/{metric}_{source}": value
        for metric, values in chosen.items()
        for source, value in values.items()
    }
    return {name: float(value) for name, value in named.items() if _is_finite(value)}


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
