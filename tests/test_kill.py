"""A run that is killed at any moment leaves a checkpoint to continue from, or none yet."""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.forks import Forks, forks
from tests.test_resume import assert_same_end

EXACT: list[dict[str, int]] = [
    {"kill_in_write": 0},
    {"kill_in_link": 0},
    {"kill_in_validation": 0},
    {"kill_at_step": 5},
    {"kill_in_write": 3},
    {"kill_in_validation": 1},
    {"kill_in_link": 1},
    {"kill_in_write": 5},
]
RANDOM = 20


@pytest.fixture(scope="module")
def overrides(musdb_root: Path) -> list[str]:
    return [
        *(f"data_root={musdb_root}", "samplerate=8000", "segment=2", "batch_size=1"),
        *("model=Demucs", "model.channels=4", "model.depth=2", "model.resample=false"),
        *("augment.remix.group_size=1", "ema.batch=[0.9]", "logger=csv", "data.workers=0"),
        *("epochs=6", "trainer.limit_train_batches=4", "trainer.limit_val_batches=1"),
        *("trainer.limit_test_batches=0", "trainer.enable_progress_bar=false"),
        *("checkpoint.every_n_steps=1", "trainer.precision=32"),
    ]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kill")


@pytest.fixture(scope="module")
def forked(home: Path) -> Iterator[Forks]:
    with forks(home) as found:
        yield found


@pytest.fixture(scope="module")
def whole(forked: Forks, overrides: list[str], home: Path) -> tuple[Path, float]:
    """The folder of an undisturbed run, and how many seconds that took."""
    folder, began = home / "whole", time.monotonic()
    child = forked.start(overrides, home / "whole.log", folder=folder)
    assert forked.wait(child) == 0, (home / "whole.log").read_text()
    return folder, time.monotonic() - began


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def assert_kills_change_nothing(
    forked: Forks, line: list[str], folder: Path, whole: tuple[Path, float], faults: list[Any]
) -> set[int]:
    """Kill runs where ``faults`` say, or somewhere where they don't, and start each again until it
    comes to its end, which must be that of ``whole``; the steps of all checkpoints they left.
    """
    undisturbed, duration = whole
    expected, best = load(undisturbed / "last.ckpt"), load(undisturbed / "best.ckpt")
    moments, log = random.Random(6), folder.with_suffix(".log")
    killed, positions = 0, set()
    while faults or killed:
        fault = faults[0] if faults else {}
        child = forked.start(line, log, folder=folder, **fault)
        if faults and not fault:
            time.sleep(moments.uniform(0, 0.4 * duration))
            os.kill(child, signal.SIGKILL)
        if forked.wait(child) == 0:  # so far the run has come in spite of it
            assert_same_end(expected, load(folder / "last.ckpt"))
            assert_same_end(best, load(folder / "best.ckpt"))
            names = {path.name for path in folder.iterdir()}
            assert not [name for name in names if name.endswith(".part")]
            folder, killed = folder.with_name(f"{folder.name}+"), 0
            continue
        faults, killed = faults[1:], killed + 1
        for path in folder.glob("*.ckpt"):
            positions.add(load(path)["global_step"])
    return positions


def test_kills_at_twenty_random_moments_and_eight_chosen_change_nothing(
    forked: Forks, overrides: list[str], tmp_path: Path, whole: tuple[Path, float]
) -> None:
    faults = [*EXACT, *[{}] * RANDOM]
    found = assert_kills_change_nothing(forked, overrides, tmp_path / "run", whole, faults)
    assert len(found) > 5


def test_kills_change_nothing_where_memory_is_low(
    forked: Forks, overrides: list[str], tmp_path: Path
) -> None:
    """With what a pool remembers, micro-batches, few bits of Adam's averages, and readers."""
    changed = ("batch_size", "augment.remix.group_size", "data.workers", "trainer.limit_train")
    line = [each for each in overrides if not each.startswith(changed)]
    line += ["experiment=low_memory", "data.workers=2", "trainer.limit_train_batches=12"]
    began = time.monotonic()
    child = forked.start(line, tmp_path / "log", folder=tmp_path / "whole")
    assert forked.wait(child) == 0, (tmp_path / "log").read_text()
    whole = tmp_path / "whole", time.monotonic() - began
    faults = [{"kill_at_step": 5}, {"kill_in_write": 3}, *[{}] * 6]
    found = assert_kills_change_nothing(forked, line, tmp_path / "run", whole, faults)
    assert len(found) > 2
    state = load(tmp_path / "whole" / "last.ckpt")["optimizer_states"][0]["state"]
    assert {each["exp_avg"].dtype for each in state.values()} == {torch.bfloat16}


def test_a_full_disk_leaves_the_checkpoint_before(
    forked: Forks, overrides: list[str], tmp_path: Path, whole: tuple[Path, float]
) -> None:
    folder, log = tmp_path / "full", tmp_path / "log"
    assert forked.wait(forked.start(overrides, log, folder=folder, fill_disk=2)) == 1
    (said,) = [line for line in log.read_text().splitlines() if "rror" in line]
    kept = "the checkpoint there stays as it was"
    assert said == f"error: No space left on device, {kept}: {folder}/last.ckpt"
    assert {path.name for path in folder.glob("*.*")} >= {"last.ckpt", "settings.yaml"}
    assert not list(folder.glob("*.part"))
    assert load(folder / "last.ckpt")["global_step"] == 2
    assert forked.wait(forked.start(overrides, log, folder=folder)) == 0, log.read_text()
    assert_same_end(load(whole[0] / "last.ckpt"), load(folder / "last.ckpt"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_says_so_with_its_status(
    forked: Forks, overrides: list[str], tmp_path: Path, number: int
) -> None:
    folder, log = tmp_path / "stopped", tmp_path / "log"
    child = forked.start(overrides, log, folder=folder, slow=0.3)
    while not (folder / "last.ckpt").exists():
        time.sleep(0.02)
    os.kill(child, number)
    assert forked.wait(child) == 128 + number, log.read_text()
    assert load(folder / "last.ckpt")["global_step"] > 0


def test_a_run_that_is_stopped_within_its_first_step_says_that_there_is_no_checkpoint(
    forked: Forks, overrides: list[str], tmp_path: Path
) -> None:
    folder, log = tmp_path / "early", tmp_path / "log"
    line = [*overrides, "trainer.accumulate_grad_batches=4", "checkpoint.every_n_steps=0"]
    child = forked.start([*line, f"hydra.run.dir={folder}"], log, slow=1.0)
    while "step 0" not in (log.read_text() if log.exists() else ""):
        time.sleep(0.02)
    os.kill(child, signal.SIGTERM)
    assert forked.wait(child) == 128 + signal.SIGTERM, log.read_text()
    assert "Stopped. This run has no checkpoint yet." in log.read_text()
    assert not (folder / "last.ckpt").exists()


def test_ctrl_c_twice_ends_at_once(forked: Forks, overrides: list[str], tmp_path: Path) -> None:
    folder, log = tmp_path / "twice", tmp_path / "log"
    child = forked.start(overrides, log, folder=folder, slow=30)
    while "step 0" not in (log.read_text() if log.exists() else ""):
        time.sleep(0.02)
    time.sleep(0.5)
    os.kill(child, signal.SIGINT)
    time.sleep(0.5)
    os.kill(child, signal.SIGINT)
    assert forked.wait(child, seconds=25) == 130, log.read_text()
    assert log.read_text().splitlines()[-1] == "Interrupted."
