"""Processes that train, started in a moment: one process imports everything once and forks them.

``python -m tests.forks`` reads orders from stdin, a line of JSON each: ``argv`` of the command
train, ``env``, the file ``log`` for all it says, and ``fault``, names of FAULTS with an argument
each. With a ``folder`` the settings are composed once for all runs with the same ``argv``, and the
run continues from the last checkpoint there, if there is one. The answer is the process id;
``wait`` with a process id is answered with its exit status, negative for a signal, or null after a
moment in which it has not ended.
"""

import errno
import functools
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def kill_at_step(step: int) -> None:
    """SIGKILL when the training step of this number (from 0) has been computed."""
    from demucs_lightning.training import LitSeparator

    plain = LitSeparator.on_before_optimizer_step

    def kill(self: Any, optimizer: Any) -> None:
        if self.trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(self, optimizer)

    LitSeparator.on_before_optimizer_step = kill


def kill_before_step(step: int) -> None:
    """SIGKILL before the training step of this number (from 0)."""
    from demucs_lightning.training import LitSeparator

    plain = LitSeparator.training_step

    def kill(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, batch, batch_idx)

    LitSeparator.training_step = kill


def impatient(seconds: float) -> None:
    """Wait so long for torch to notice that a process is gone."""
    from demucs_lightning.callbacks import watch

    watch.GRACE = seconds


def kill_in_write(number: int) -> None:
    """SIGKILL in the middle of writing the checkpoint of this number (from 0)."""
    end_in_write(number, lambda: os.kill(os.getpid(), signal.SIGKILL))


def fill_disk(number: int) -> None:
    """The disk is full from the checkpoint of this number (from 0) on."""

    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    end_in_write(number, fail)


def end_in_write(number: int, end: Callable[[], None]) -> None:
    import torch

    plain, count = torch.save, iter(range(10**6))

    def save(content: Any, file: Any) -> None:
        if next(count) < number:
            plain(content, file)
            return
        file.write(b"half of it")
        file.flush()
        end()

    torch.save = save


def kill_in_validation(number: int) -> None:
    """SIGKILL at the validation track of this number (from 0)."""
    from demucs_lightning.validation import ScoredModule

    plain, count = ScoredModule.validation_step, iter(range(10**6))

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, batch, batch_idx)

    ScoredModule.validation_step = step


def slow(seconds: float) -> None:
    """Every step says its number and takes so much longer: time to send a signal."""
    from demucs_lightning.training import LitSeparator

    plain = LitSeparator.training_step

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        say(f"step {self.trainer.global_step}")
        time.sleep(seconds)
        return plain(self, batch, batch_idx)

    LitSeparator.training_step = step


def fail_at_step(step: int) -> None:
    """The second process raises an error at the training step of this number (from 0)."""
    from demucs_lightning.training import LitSeparator

    plain = LitSeparator.training_step

    def broken(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == step and self.global_rank == 1:
            raise OSError("a cable was pulled")
        return plain(self, batch, batch_idx)

    LitSeparator.training_step = broken


def kill_in_link(number: int) -> None:
    """SIGKILL between best.ckpt and last.ckpt, of the best checkpoint of this number (from 0)."""
    from demucs_lightning.callbacks import checkpoints

    plain, count = checkpoints.link, iter(range(10**6))

    def link(source: Path, target: Path) -> None:
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(source, target)

    checkpoints.link = link


FAULTS: dict[str, Callable[..., None]] = {
    function.__name__: function
    for function in (
        kill_at_step,
        kill_before_step,
        impatient,
        kill_in_write,
        kill_in_link,
        kill_in_validation,
        slow,
        fail_at_step,
        fill_disk,
    )
}


@functools.cache
def settings(argv: tuple[str, ...]) -> Any:
    from demucs_lightning.commands.settings import compose

    return compose(argv)


def composed(argv: tuple[str, ...], folder: str) -> Any:
    cfg, last = settings(argv).copy(), Path(folder) / "last.ckpt"
    cfg.resume_checkpoint = str(last) if last.exists() else None
    return cfg


def work(order: dict[str, Any]) -> None:
    """In a process of its own: run the command, and end with its status."""
    output = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(order["env"])
    from demucs_lightning.commands import train
    from demucs_lightning.commands.explain import explained

    for name, argument in order["fault"].items():
        FAULTS[name](argument)
    sys.argv = [str(ROOT / "train.py")]
    status: Any = 1
    try:
        if order["folder"] is None:
            train.main(order["argv"])
        else:
            with explained():
                train.run(composed(tuple(order["argv"]), order["folder"]), Path(order["folder"]))
        status = 0
    except SystemExit as end:
        status = end.code
    finally:  # this is a copy of the process that forks, whose work is not to be done here
        if error := sys.exception():
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


def serve() -> None:
    import torch

    from demucs_lightning.commands import train  # noqa: F401

    torch.set_num_threads(1)
    threads = len(list(Path("/proc/self/task").iterdir())) if Path("/proc").is_dir() else 1
    assert threads == 1, "a process with threads must not be forked"
    running = set()
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            status = _status(order["wait"])
            running -= {order["wait"]} if status is not None else set()
            say(json.dumps(status))
            continue
        if order["folder"] is not None:
            settings(tuple(order["argv"]))
        child = os.fork()
        if child == 0:
            work(order)
        running.add(child)
        say(str(child))
    for child in running:  # of a test that has failed
        os.kill(child, signal.SIGKILL)


def _status(child: int, seconds: float = 1.0) -> int | None:
    until = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.01)


class Forks:
    """What a test says to the process that forks."""

    def __init__(self, server: Any) -> None:
        self.server = server

    def start(
        self,
        argv: list[str],
        log: Path,
        *,
        folder: Path | None = None,
        env: dict[str, str] | None = None,
        **fault: Any,
    ) -> int:
        """Start a run, with environment variables and faults of its own; the process id."""
        place = None if folder is None else str(folder)
        order = {"argv": argv, "env": env or {}, "log": str(log), "fault": fault, "folder": place}
        return self._ask(order)

    def wait(self, child: int, seconds: float = 300.0) -> int:
        """The exit status, negative for a signal."""
        until = time.monotonic() + seconds
        while (status := self._ask({"wait": child})) is None:
            if time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
                raise AssertionError(f"process {child} has not ended after {seconds:g} s")
        return status

    def _ask(self, order: dict[str, Any]) -> Any:
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())


@contextmanager
def forks(folder: Path) -> Iterator[Forks]:
    """The process that forks, working in ``folder``."""
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment = {**os.environ, **single, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.forks"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server: Any
    with subprocess.Popen(command, cwd=folder, env=environment, **pipes) as server:
        yield Forks(server)
        server.stdin.close()


if __name__ == "__main__":
    serve()
