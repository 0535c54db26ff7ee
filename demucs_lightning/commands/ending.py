"""How a run ends before its time, and how it goes on by itself: signals, processes that are gone,
and jobs that Slurm or torchrun starts again.
"""

import errno
import logging
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from lightning import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig

from demucs_lightning.callbacks import Checkpoints, Stopping, Watch
from demucs_lightning.scale import Launch, current, first_says, requeue
from demucs_lightning.scale.launch import SRUN

log = logging.getLogger(__name__)

LOST = ("Connection closed by peer", "Connection reset by peer")  # what gloo says of one that died
SILENT = "Timed out waiting"  # what gloo says of a process that is there but does not answer
NO_ANSWER = "another process has not answered for as long as distributed.timeout allows."

# Of a disk that is full, and a folder that was removed: how a thread that writes curves may fail.
UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.ENOENT)
NONE, SAME, OTHER = "none", "same", "other"
REQUEUED = "requeued.txt"  # in the folder of a job's run: how often Slurm had started it again

Part = TypeVar("Part")
Caught = TypeVar("Caught", bound=BaseException)


def continued(cfg: DictConfig, folder: Path) -> DictConfig:
    """The settings, with the last checkpoint of ``folder`` to continue from where Slurm or torchrun
    has started the run again. From here on, Slurm's signal puts the job back into the queue.

    Raises ValueError where only the first process has that checkpoint, and where another run of the
    same job has the folder.
    """
    launch, last = current(), folder / "last.ckpt"
    if launch.by == SRUN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, lambda *_: leave(signal.SIGUSR1))
    here = _found(launch, folder)
    said = first_says(f"restart {launch.restarts}", here) if launch.restarts else here
    if said == OTHER and cfg.resume_checkpoint is None:
        raise ValueError(
            f"{folder} holds another run of this Slurm job: give this one a folder of its own, "
            "hydra.run.dir=..., or continue that one, resume_checkpoint=..."
        )
    if here == NONE and last.is_file() and launch.rank == 0 and cfg.resume_checkpoint is None:
        log.warning("%s is of another run: this one will replace it.", last)
    if launch.job and launch.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REQUEUED).write_text(str(launch.requeued))
    if said != SAME:
        return cfg
    if here == NONE:
        raise ValueError(
            f"The first process continues from {last}, which is not on this machine: put the run's "
            "folder on a disk that all machines share."
        )
    log.info("Started again: continuing from %s", last)
    curves = folder / "csv"  # which a new logger would delete
    if launch.rank == 0 and curves.is_dir():
        curves.replace(folder / f"csv-before-{launch.restarts}")
    cfg = cfg.copy()
    cfg.resume_checkpoint = str(last)
    return cfg


def _found(launch: Launch, folder: Path) -> str:
    """Which run has a checkpoint in ``folder``: none, the same one before it was started again, or
    another one, that this job has begun or continued since Slurm started it.
    """
    if not (folder / "last.ckpt").is_file():
        return NONE
    if not launch.job or launch.restarts > launch.requeued:  # torchrun's own restarts, or none
        return SAME if launch.restarts else NONE
    mark = folder / REQUEUED
    now = not launch.requeued or (mark.is_file() and mark.read_text() == str(launch.requeued))
    return OTHER if now else SAME


@contextmanager
def stoppable() -> Iterator[None]:
    """A SIGTERM ends the run at once where training doesn't wait for it: while data are prepared,
    or between training and the test.
    """
    own = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _told) if own else None
    try:
        yield
    except SIGTERMException:
        log.info("Stopped.")
        leave(signal.SIGTERM)
    finally:
        if own:
            signal.signal(signal.SIGTERM, before)


def _told(*_: Any) -> NoReturn:
    raise SIGTERMException


@contextmanager
def guarded(trainer: Trainer) -> Iterator[None]:
    """Ends the program where the run was stopped, or another process of it is gone: with the status
    of the signal, or with one sentence. Any other exception gets a note how to continue, where
    there is a checkpoint to continue from.
    """
    stopping, watch = _part(trainer, Stopping), _part(trainer, Watch)
    try:
        with _unseen():
            yield
        if stopping.number:  # it came with the last step
            raise SIGTERMException
    except SIGTERMException:
        _stopped(trainer, stopping, watch)
    except (Exception, SystemExit) as error:
        if watch.lost is not None and stopping.number:  # the other one was quicker
            _stopped(trainer, stopping, watch)
        watch.check()
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)  # else the others wait for this one
        _name_folder(error, _part(trainer, Checkpoints).last.parent)
        how = _how_to_continue(trainer)
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning makes it a status of 1
            raise _noted(KeyboardInterrupt(), how) from None
        if SILENT in str(error):
            raise _noted(TimeoutError(NO_ANSWER), how) from error
        if any(words in str(error) for words in LOST):
            raise _noted(ConnectionError(_died(str(error), trainer.world_size)), how) from error
        _noted(error, how)
        raise


@contextmanager
def _unseen() -> Iterator[None]:
    """While it lasts, a full disk or a lost folder shows no traceback of a thread or a log:
    TensorBoard's thread keeps the exception for who writes next, and a log is not worth a run.
    """
    shown, logs = threading.excepthook, logging.raiseExceptions

    def show(failed: threading.ExceptHookArgs) -> None:
        if getattr(failed.exc_value, "errno", None) not in UNWRITTEN:
            shown(failed)

    threading.excepthook, logging.raiseExceptions = show, False
    try:
        yield
    finally:
        threading.excepthook, logging.raiseExceptions = shown, logs


def _name_folder(error: BaseException, folder: Path) -> None:
    """Let an error of TensorBoard's, with no name of a file or one in bytes, name the folder."""
    if not isinstance(error, OSError) or isinstance(error.filename, str):
        return
    if error.errno in UNWRITTEN:
        error.filename = str(folder)


def _died(said: str, world: int) -> str:
    rank = re.search(r"from rank (\d+)", said)
    return f"{f'Process {rank[1]}' if rank else 'Another process'} of {world} has died."


def _noted(error: Caught, note: str) -> Caught:
    if note:
        error.add_note(note)
    return error


def _how_to_continue(trainer: Trainer) -> str:
    """Empty unless this process has written a checkpoint."""
    keeper = _part(trainer, Checkpoints)
    written = keeper.written and trainer.is_global_zero
    return f"To continue: resume_checkpoint={keeper.last}" if written else ""


def _stopped(trainer: Trainer, stopping: Stopping, watch: Watch) -> NoReturn:
    if watch.lost is not None and watch.tells and not watch.lost.failed:
        # Its launcher may have stopped this process just for that.
        log.error("Process %d of %d has died.", watch.lost.rank, watch.world)
    none = "This run has no checkpoint yet." if trainer.is_global_zero else ""
    log.info("%s", " ".join(["Stopped.", _how_to_continue(trainer) or none]).rstrip())
    leave(stopping.number or signal.SIGTERM)


def leave(number: int) -> NoReturn:
    """End after a signal; after the one of Slurm, back into the queue."""
    if number == signal.SIGUSR1:
        if current().rank == 0:
            requeue()
        number = signal.SIGTERM
    sys.exit(128 + number)


def _part(trainer: Any, kind: type[Part]) -> Part:
    return next(each for each in trainer.callbacks if isinstance(each, kind))
