"""The end of a run on request: SIGTERM, Ctrl-C, and the signal with which Slurm announces that it
takes the machines away.
"""

import logging
import signal
import threading
from typing import Any

import torch
from lightning import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import distributed

from demucs_lightning.scale.launch import ALONE, SRUN

log = logging.getLogger(__name__)


class Stopping(Callback):
    """Raises SIGTERMException between two steps, or two validation tracks, once a signal has come;
    ``number`` is then the signal. ``by`` says who has started the processes: srun announces the end
    with SIGUSR1, and where neither it nor torchrun passes signals on, a second Ctrl-C interrupts at
    once.

    Several processes stop at the same step, whichever of them had the signal: they compare notes in
    the background of every step, on the CPU, so that no GPU is waited for.
    """

    def __init__(self, by: str = ALONE) -> None:
        self.number: int | None = None
        self.by = by
        self.signals = [signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if by == SRUN else [])]
        self.handlers: dict[int, Any] = {}
        self.note, self.sent = torch.zeros(1, dtype=torch.int64), None
        self.group: Any = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.world_size > 1:
            self.group = distributed.new_group(backend="gloo")
            # Lightning asks the first process at every step, and waits for the GPU to do so.
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        if threading.current_thread() is threading.main_thread():
            for number in self.signals:
                self.handlers[number] = signal.signal(number, lambda n, _: self._stop(trainer, n))

    def _stop(self, trainer: Any, number: int) -> None:
        if self.number == number == signal.SIGINT and self.by == ALONE:
            raise KeyboardInterrupt
        if self.number is None:
            log.info("Stopping after this step ...")
            self.number = number
        if trainer.world_size == 1:
            trainer._signal_connector.received_sigterm = True  # SIGTERMException after this step

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.world_size > 1:
            self._compare()

    def on_validation_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if trainer.world_size > 1:
            self._compare()
        elif trainer.received_sigterm:
            raise SIGTERMException

    def _compare(self) -> None:
        """Read the notes of the step before, and send one for the next."""
        self._read()
        if self.number is not None and self.note.item():
            raise SIGTERMException
        self.note = torch.tensor([self.number or 0])
        most = distributed.ReduceOp.MAX
        self.sent = distributed.all_reduce(self.note, op=most, group=self.group, async_op=True)

    def _read(self) -> None:
        sent, self.sent = self.sent, None
        if sent is not None:
            sent.wait()
            if self.note.item():
                self.number = int(self.note.item())

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._read()
        while self.handlers:  # after an exception Lightning does, once a checkpoint is written
            signal.signal(*self.handlers.popitem())
