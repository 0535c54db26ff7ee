"""The last lines of a run: how to continue, where the checkpoints are, and which curve goes on."""

import errno
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem
from torch import distributed

from demucs_lightning.commands import ending, settings, start
from demucs_lightning.commands import train as training
from demucs_lightning.training import LitSeparator


@pytest.fixture
def overrides(tiny: list[str]) -> list[str]:
    small = ["model=Demucs", "model.depth=2", "model.resample=false", "segment=2", "logger=csv"]
    return [*small, *tiny, "trainer.limit_test_batches=0", "batch_size=4"]


def failing(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> None:
    plain = LitSeparator.training_step

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == at:
            raise error
        return plain(self, batch, batch_idx)

    monkeypatch.setattr(LitSeparator, "training_step", step)


WAITED = RuntimeError("[unbound_buffer.cc:78] Timed out waiting 18000ms for recv operation")
GONE = RuntimeError(
    "Rank 1 successfully reached monitoredBarrier, but received errors while waiting for send/recv "
    "from rank 0: [pair.cc:553] Connection closed by peer [127.0.0.1]:29500"
)
NOBODY = distributed.DistNetworkError(
    "No answer while trying to connect to (no.such.host, 29579).\nException raised from ..."
)
MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MEMORY, "error: The device ran out of memory with batch_size=4, segment=2, "),
        (OSError("a cable was pulled"), "error: a cable was pulled"),
        (WAITED, "error: another process has not answered for as long as distributed.timeout"),
        (GONE, "error: Process 0 of 1 has died."),
        (NOBODY, "error: No answer while trying to connect to (no.such.host, 29579). Are MASTER_"),
        (TypeError("a bug"), "TypeError: a bug"),
        (RuntimeError("another bug"), "RuntimeError: another bug"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_whatever_ends_a_run_it_says_how_to_continue(
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    said: str,
) -> None:
    failing(monkeypatch, 1, error)
    with pytest.raises(SystemExit) as stop:
        training.main(overrides)
    assert stop.value.code == 1
    last = tmp_path / "run" / "last.ckpt"
    text = capsys.readouterr().err
    lines = text.splitlines()
    (place,) = [i for i, line in enumerate(lines) if line.startswith(said)]
    assert lines[place + 1] == f"To continue: resume_checkpoint={last}"
    assert ("Traceback" in text) == (not said.startswith("error: "))
    monkeypatch.undo()
    trained = training.run(
        settings.compose([*overrides, f"resume_checkpoint={last}"]), tmp_path / "continued"
    )
    assert trained.trainer.global_step == 2


@pytest.mark.parametrize(
    ("place", "name", "said"),
    [
        (training, "score_best", "Stopped. To continue: resume_checkpoint="),
        (start, "begin", "Stopped."),
    ],
    ids=["before the test", "while data are prepared"],
)
def test_a_signal_outside_of_training_is_heard(
    overrides: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    place: Any,
    name: str,
    said: str,
) -> None:
    def told(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(place, name, told)
    with pytest.raises(SystemExit) as stop:
        training.main(overrides)
    assert stop.value.code == 128 + signal.SIGTERM
    assert said in "".join(capfd.readouterr())
    assert signal.getsignal(signal.SIGTERM) == before


def test_checkpoints_that_will_be_replaced_are_named(
    overrides: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = settings.compose(overrides)
    (tmp_path / "last.ckpt").touch()
    assert ending.continued(cfg, tmp_path) is cfg
    said = f"{tmp_path}/last.ckpt is of another run: this one will replace it."
    assert caplog.messages == [said]


@pytest.mark.parametrize(("number", "name"), [(errno.ENOSPC, None), (errno.ENOENT, b"curves")])
def test_a_disk_that_curves_fill_and_a_folder_that_is_lost_are_named(  # noqa: PLR0913
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    name: bytes | None,
) -> None:
    """TensorBoard writes in a thread of its own, and its exception names no file, or its own."""
    plain, unseen, written = LocalFileSystem.append, [], []

    def append(*args: Any) -> None:
        written.append(args)
        if len(written) > 3:
            raise OSError(number, os.strerror(number), name)
        plain(*args)

    monkeypatch.setattr(LocalFileSystem, "append", append)
    monkeypatch.setattr(threading, "excepthook", unseen.append)
    with pytest.raises(SystemExit) as stop:
        training.main([*overrides, "logger=tensorboard"])
    assert stop.value.code == 1
    last = tmp_path / "run" / "last.ckpt"
    how = f"To continue: resume_checkpoint={last}"
    said = f"error: {os.strerror(number)}: {tmp_path}/run\n{how}\n"
    assert said in capsys.readouterr().err
    assert not unseen
    assert torch.load(last, weights_only=True)["global_step"] > 0


def test_a_second_run_of_a_slurm_job_leaves_the_first_alone(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, last = settings.compose(overrides), tmp_path / "last.ckpt"
    last.write_bytes(b"")
    assert ending.continued(cfg, tmp_path) == cfg
    job = {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "jupyter", "SLURM_JOB_ID": "90"}
    for key, value in job.items():
        monkeypatch.setenv(key, value)
    usual = signal.getsignal(signal.SIGUSR1)
    try:
        with pytest.raises(ValueError, match="holds another run of this Slurm job: give this one"):
            ending.continued(cfg, tmp_path)
        for count in ("1", "2"):
            monkeypatch.setenv("SLURM_RESTART_COUNT", count)
            assert ending.continued(cfg, tmp_path).resume_checkpoint == str(last)
            with pytest.raises(ValueError, match="holds another run of this Slurm job"):
                ending.continued(cfg, tmp_path)  # a second command of the script
    finally:
        signal.signal(signal.SIGUSR1, usual)


def test_torchrun_starts_the_same_run_again_within_a_slurm_job(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, last = settings.compose(overrides), tmp_path / "last.ckpt"
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    for key, value in {**alone, "TORCHELASTIC_RUN_ID": "none", "SLURM_JOB_ID": "90"}.items():
        monkeypatch.setenv(key, value)
    assert ending.continued(cfg, tmp_path) == cfg
    last.write_bytes(b"")
    for counts in ("01", "02", "10", "11", "20"):  # of Slurm, and of torchrun since then
        monkeypatch.setenv("SLURM_RESTART_COUNT", counts[0])
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", counts[1])
        assert ending.continued(cfg, tmp_path).resume_checkpoint == str(last)


def test_where_nothing_was_written_there_is_nothing_to_continue_from(
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(SystemExit):
        training.main(overrides)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: The device ran out of memory with ")
    assert not [line for line in lines if "To continue" in line]
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("validates", [True, False])
def test_the_last_line_says_where_the_checkpoints_are(
    overrides: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, validates: bool
) -> None:
    caplog.set_level(logging.INFO)
    line = [*overrides, "epochs=4", "trainer.max_steps=1"]
    line += [] if validates else ["trainer.limit_val_batches=0"]
    training.run(settings.compose(line), tmp_path)
    best = f" · best: {tmp_path}/best.ckpt" if validates else ""
    said = f"Trained 1 step{best} · to continue: {tmp_path}/last.ckpt"
    assert caplog.messages[-1] == said
    assert sum(str(tmp_path / "last.ckpt") in message for message in caplog.messages) == 1


@pytest.mark.parametrize(
    ("change", "warns"),
    [
        ([], False),
        (["epochs=4"], True),
        (["trainer.max_steps=2"], True),
        (["trainer.max_steps=3"], False),  # as many as the epochs have
        (["optim.schedule=constant"], True),
        (["optim.warmup=9"], True),
    ],
)
def test_another_curve_of_the_learning_rate_is_said(
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: list[str],
    warns: bool,
) -> None:
    overrides = [*overrides, "optim.schedule=cosine", "epochs=3"]
    with monkeypatch.context() as patch:
        failing(patch, 1, OSError("a cable was pulled"))
        with pytest.raises(OSError, match="cable"):
            training.run(settings.compose(overrides), tmp_path / "first")
    line = [*overrides, *change, f"resume_checkpoint={tmp_path}/first/last.ckpt"]
    training.run(settings.compose(line), tmp_path / "second")
    said = [each for each in caplog.messages if each.startswith("The learning rate goes on at ")]
    assert len(said) == warns
    assert all(
        "trainer.max_steps" in each and "the run before had 0.000225" in each for each in said
    )
