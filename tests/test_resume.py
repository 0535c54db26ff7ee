"""A run that stops and is continued ends as the run that did not stop, bit for bit."""

import csv
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from demucs_lightning.commands import settings
from demucs_lightning.commands.train import run
from demucs_lightning.resume import settle
from demucs_lightning.training import LitSeparator

EPOCHS, BATCHES = 2, 4
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def overrides(musdb_root: Path) -> list[str]:
    return [
        f"data_root={musdb_root}",
        "samplerate=8000",
        "segment=2",
        "model=Demucs",
        "model.channels=4",
        "model.depth=2",
        "model.resample=false",
        f"epochs={EPOCHS}",
        "ema.epoch=[0.5]",
        "ema.batch=[0.9]",
        "optim.schedule=cosine",
        "optim.warmup=2",
        "logger=csv",
        "data.workers=0",
        f"trainer.limit_train_batches={BATCHES}",
        "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=0",
        "trainer.enable_progress_bar=false",
        "checkpoint.every_n_minutes=0",
        "trainer.precision=32",
    ]


def train(overrides: list[str], folder: Path) -> dict[str, Any]:
    run(settings.compose(overrides), folder)
    return load(folder)


def load(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "last.ckpt", weights_only=True)


def stop(monkeypatch: pytest.MonkeyPatch, name: str, at: tuple[int, int], how: Any) -> None:
    """Let a run end in the step ``name`` of (epoch, batch)."""
    plain = getattr(LitSeparator, name)

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        if (self.current_epoch, batch_idx) == at:
            how()
        return plain(self, batch, batch_idx)

    monkeypatch.setattr(LitSeparator, name, step)


def preempt() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fail() -> None:
    raise RuntimeError("a cable was pulled")


def assert_equal(left: Any, right: Any, where: str = "") -> None:
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_equal(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for number, pair in enumerate(zip(left, right, strict=True)):
            assert_equal(*pair, f"{where}/{number}")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    else:
        assert left == right, where


def assert_same_end(left: dict[str, Any], right: dict[str, Any]) -> None:
    """Of weights, averages, optimizer, schedule, position, and the best validation."""
    keys = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")
    for key in (*keys, "demucs_lightning"):
        assert_equal(left[key], right[key], key)
    assert left["global_step"] > 0
    assert best_score(left) == best_score(right)


def validations(folder: Path) -> list[tuple[str, str]]:
    """Step and nSDR of each, as logged."""
    with (folder / "csv" / "metrics.csv").open() as file:
        return [
            (row["step"], row["valid/nsdr"]) for row in csv.DictReader(file) if row["valid/nsdr"]
        ]


def best_score(checkpoint: dict[str, Any]) -> float:
    return checkpoint["callbacks"]["Checkpoints"]["best_score"]


@pytest.mark.parametrize(
    ("extra", "at", "how"),
    [
        ([], (0, 2), preempt),  # saved after the step that was running: position (0, 3)
        ([], (1, 1), fail),  # saved before it: position (1, 1)
        ([], (1, 0), fail),  # at the start of an epoch
        ([], (0, BATCHES - 1), preempt),  # at its end
        (["data.workers=2"], (1, 1), fail),
        (["trainer.val_check_interval=2"], (0, 1), preempt),  # at a validation within an epoch
        (["trainer.val_check_interval=2"], (1, 3), fail),  # after one
        (["trainer.accumulate_grad_batches=3"], (1, 2), fail),  # within a step: back to its start
        (["trainer.check_val_every_n_epoch=2"], (1, 2), fail),
        (["trainer.limit_val_batches=0"], (1, 2), preempt),
        (["svd.penalty=1e-3", "svd.min_size=0", "svd.proba=0.5"], (0, 2), fail),
        (["trainer.precision=64", "optim.optim=adamw"], (0, 2), preempt),
        (["trainer.precision=bf16"], (1, 1), fail),
        (["optim.state=bf16"], (0, 2), preempt),
        (["optim.state=8bit", "optim.optim=adamw"], (1, 1), fail),
        (["batch_size=1", "augment.remix.pool=3"], (1, 2), fail),
        (
            ["batch_size=2", "augment.remix.pool=3", "trainer.accumulate_grad_batches=2"],
            (1, 3),
            fail,
        ),
    ],
)
def test_continued_run_equals_uninterrupted_one(
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    extra: list[str],
    at: Any,
    how: Any,
) -> None:
    overrides = overrides + extra
    whole = train(overrides, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop(patch, "training_step", at, how)
        with pytest.raises((RuntimeError, SystemExit)):
            train(overrides, tmp_path / "stopped")
    before = load(tmp_path / "stopped")
    assert 0 < before["global_step"] < whole["global_step"]
    resume = f"resume_checkpoint={tmp_path}/stopped/last.ckpt"
    assert_same_end(whole, train([*overrides, resume], tmp_path / "continued"))


@pytest.mark.parametrize("interval", [2, BATCHES])
def test_a_validation_that_was_interrupted_is_made_up_for(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: int
) -> None:
    overrides += [f"trainer.val_check_interval={interval}", "trainer.limit_val_batches=2"]
    whole = train(overrides, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop(patch, "validation_step", (0, 1), fail)
        with pytest.raises(RuntimeError, match="cable"):
            train(overrides, tmp_path / "stopped")
    assert best_score(load(tmp_path / "stopped")) == -math.inf
    assert load(tmp_path / "stopped")["global_step"] == interval
    resume = f"resume_checkpoint={tmp_path}/stopped/last.ckpt"
    assert_same_end(whole, train([*overrides, resume], tmp_path / "continued"))
    assert validations(tmp_path / "whole") == validations(tmp_path / "continued")
    assert len(validations(tmp_path / "whole")) == EPOCHS * BATCHES // interval


def test_the_loss_of_a_resumed_epoch_is_that_of_its_rest(
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    overrides += ["trainer.enable_progress_bar=true"]
    with monkeypatch.context() as patch:
        stop(patch, "training_step", (0, 2), fail)
        with pytest.raises(RuntimeError, match="cable"):
            train(overrides, tmp_path / "stopped")
    with caplog.at_level("INFO", "demucs_lightning.callbacks.progress"):
        resume = f"resume_checkpoint={tmp_path}/stopped/last.ckpt"
        train([*overrides, resume], tmp_path / "continued")
    lines = [each.message for each in caplog.records if each.message.startswith("epoch ")]
    assert ["since the resume" in line for line in lines] == [True, False]


def test_a_killed_run_loses_only_what_came_after_the_last_save(
    overrides: list[str], tmp_path: Path
) -> None:
    overrides += ["epochs=15", "trainer.limit_val_batches=0", "checkpoint.every_n_steps=1"]
    whole = train(overrides, tmp_path / "whole")
    command = [sys.executable, str(REPOSITORY / "train.py"), *overrides]
    last = tmp_path / "killed" / "last.ckpt"
    with subprocess.Popen([*command, f"hydra.run.dir={last.parent}"], cwd=tmp_path) as process:
        while not last.exists():
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.005)
        process.kill()
    assert 0 < load(last.parent)["global_step"] < whole["global_step"]
    continued = train([*overrides, f"resume_checkpoint={last}"], tmp_path / "continued")
    assert_same_end(whole, continued)


def test_another_order_is_refused_within_an_epoch(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop(patch, "training_step", (0, 2), fail)
        with pytest.raises(RuntimeError, match="cable"):
            train(overrides, tmp_path)
    with pytest.raises(ValueError, match=r"had 4 to a batch .*, here 8\): use"):
        train([*overrides, "batch_size=8", f"resume_checkpoint={tmp_path}/last.ckpt"], tmp_path)


def test_more_epochs_continue_a_finished_run(
    overrides: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides += ["optim.schedule=constant"]
    whole = train(overrides, tmp_path / "whole")
    first = train([*overrides, "epochs=1"], tmp_path / "first")
    resume = f"resume_checkpoint={tmp_path}/first/last.ckpt"
    said = "Nothing is left to train after epochs=1: a larger number goes on."
    assert said not in caplog.text
    with caplog.at_level("INFO"):
        again = run(settings.compose([*overrides, "epochs=1", resume]), tmp_path / "again")
    for name, value in again.state_dict().items():
        assert torch.equal(value, first["state_dict"][name])
    assert caplog.text.count(said) == 1
    assert_same_end(whole, train([*overrides, resume], tmp_path / "second"))
    assert caplog.text.count("Nothing is left") == 1


def test_the_best_of_the_former_run_is_remembered(overrides: list[str], tmp_path: Path) -> None:
    train([*overrides, "epochs=1"], tmp_path / "first")
    checkpoint = load(tmp_path / "first")
    checkpoint["callbacks"]["Checkpoints"]["best_score"] = 100.0
    torch.save(checkpoint, tmp_path / "great.ckpt")
    after = train([*overrides, f"resume_checkpoint={tmp_path}/great.ckpt"], tmp_path / "second")
    state = after["callbacks"]["Checkpoints"]
    assert state == {"best_score": 100.0, "best_path": str(tmp_path / "first" / "best.ckpt")}
    assert not (tmp_path / "second" / "best.ckpt").exists()


def test_positions_as_lightning_counts_them() -> None:
    def counters(position: tuple[int, int], *, validate: bool) -> dict[str, Any]:
        names = (
            "epoch_progress",
            "epoch_loop.batch_progress",
            "epoch_loop.val_loop.batch_progress",
        )
        progress: dict[str, Any] = {name: {} for name in names}
        checkpoint = {"loops": {"fit_loop": progress}}
        settle(checkpoint, position, batches=10, validate=validate)
        return progress

    within = counters((3, 4), validate=False)
    assert within["epoch_progress"]["total"]["started"] == 4
    assert within["epoch_progress"]["total"]["completed"] == 3
    assert within["epoch_loop.batch_progress"]["current"]["completed"] == 4
    assert within["epoch_loop.batch_progress"]["total"]["ready"] == 34
    between = counters((3, 0), validate=False)
    assert set(between["epoch_progress"]["current"].values()) == {3}
    due = counters((3, 0), validate=True)  # the last batch of the third epoch, not validated yet
    assert due["epoch_progress"]["current"]["completed"] == 2
    assert due["epoch_loop.batch_progress"]["current"]["completed"] == 10
    assert due["epoch_loop.batch_progress"]["is_last_batch"]
