"""Tests in the background of training, by a process that may do as it likes."""

import json
import logging
import os
import sys
import time
from types import SimpleNamespace

import pytest

from demucs_lightning.callbacks import Evaluations, evaluations

SUMMARY = {
    "table": "the table",
    "failed": {"Ann": "Ann: there is not enough memory for it."},
    "mean": {"nsdr": {"bass": 1.5, "overall": 2.5}},
    "median": {"sdr": {"bass": None, "overall": "inf"}},
}
SCORES = """
import json, os, pathlib, sys
path = pathlib.Path(sys.argv[sys.argv.index("--json") + 1])
ranks = [name for name in os.environ if name.startswith(("RANK", "TORCHE", "SLURM"))]
about = {"line": sys.argv[1:], "ranks": ranks, "group": os.getpgid(0)}
about["gpus"] = os.environ.get("CUDA_VISIBLE_DEVICES")
path.write_text(json.dumps({**%r, "about": about}))
"""
WAITS = "import time; time.sleep(60)"
DIES = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture
def trainer(tmp_path):
    """As much of a trainer as the callback asks for, and what it logs."""
    (tmp_path / "last.ckpt").write_text("weights of epoch 1")
    logged = []
    logger = SimpleNamespace(log_metrics=lambda scores, step: logged.append((scores, step)))
    return SimpleNamespace(
        is_global_zero=True,
        current_epoch=0,
        global_step=7,
        checkpoint_callback=SimpleNamespace(last=tmp_path / "last.ckpt"),
        loggers=[logger],
        logged=logged,
    )


@pytest.fixture
def begin(tmp_path, monkeypatch, trainer):
    """A callback whose process runs this program, told of the beginnings of epochs."""
    made = []

    def start(program, every=1, device="cpu"):
        monkeypatch.setattr(evaluations, "COMMAND", (sys.executable, "-c", program))
        monkeypatch.setattr(evaluations, "PERIOD", 0)
        callback = Evaluations(tmp_path, every=every, device=device)
        made.append(callback)

        def epochs(*numbers):
            for trainer.current_epoch in numbers:
                callback.on_train_epoch_start(trainer, None)

        return callback, epochs

    yield start
    for callback in made:
        if callback.current is not None:
            callback.current.process.kill()
            callback.current.process.wait()


def finished(callback):
    callback.current.process.wait(timeout=60)


def test_it_tests_a_copy_of_the_checkpoint_and_logs_the_scores(
    begin, trainer, tmp_path, caplog, monkeypatch
):
    caplog.set_level(logging.INFO)
    for name in ("RANK", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS"):
        monkeypatch.setenv(name, "1")
    callback, epochs = begin(SCORES % (SUMMARY,), every=2)
    epochs(0, 1)
    assert callback.current is None
    epochs(2)
    copy = tmp_path / "tests" / "epoch-0002.ckpt"
    (tmp_path / "last.ckpt").unlink()  # a new one takes its place, the copy stays
    (tmp_path / "last.ckpt").write_text("weights of epoch 2")
    assert copy.read_text() == "weights of epoch 1"
    finished(callback)
    about = json.loads(copy.with_suffix(".json").read_text())["about"]
    assert about["line"][:3] == [str(copy), "--settings", str(tmp_path / "settings.yaml")]
    assert about["line"][about["line"].index("-o") + 1] == str(tmp_path / "tests" / "epoch-0002")
    assert about["ranks"] == []
    assert about["gpus"] == ""
    assert about["group"] != os.getpgid(0)
    epochs(3)
    assert trainer.logged == [({"test/epoch": 2.0, "test/nsdr_bass": 1.5, "test/nsdr": 2.5}, 7)]
    assert "Test of epoch 2:\nthe table" in caplog.text
    assert "Test of epoch 2: no scores of Ann: there is not enough memory for it." in caplog.text
    assert not copy.exists()


def test_there_is_one_at_a_time(begin, trainer, caplog):
    caplog.set_level(logging.INFO)
    callback, epochs = begin(WAITS)
    started = time.monotonic()
    epochs(1)
    process = callback.current.process
    epochs(2)
    assert callback.current.process is process
    assert "The test of epoch 1 is still at work: epoch 2 is not tested." in caplog.text
    trainer.current_epoch = 2
    callback.on_train_end(trainer, None)
    assert "The test of epoch 1 goes on; its table will be in" in caplog.text
    assert process.poll() is None
    assert time.monotonic() - started < 30  # nobody waited


@pytest.mark.parametrize("program", [DIES, "import sys; sys.exit(1)", "not Python"])
def test_its_death_is_said_and_the_next_one_starts(begin, trainer, caplog, tmp_path, program):
    callback, epochs = begin(program)
    epochs(1)
    finished(callback)
    callback.on_train_batch_start(trainer, None, None, 0)
    assert "The test of epoch 1 failed" in caplog.text
    assert "training goes on: see" in caplog.text
    assert trainer.logged == []
    assert not (tmp_path / "tests" / "epoch-0001.ckpt").exists()
    epochs(2)
    assert callback.current.epoch == 2


def test_a_checkpoint_that_lacks_is_said(begin, trainer, caplog, tmp_path):
    (tmp_path / "last.ckpt").unlink()
    callback, epochs = begin(WAITS)
    epochs(1)
    assert callback.current is None
    assert "The test of epoch 1 could not be started" in caplog.text


def test_only_the_first_process_tests_and_never_unasked(begin, trainer):
    callback, epochs = begin(WAITS, every=0)
    epochs(1, 2)
    assert callback.current is None
    trainer.is_global_zero = False
    callback, epochs = begin(WAITS)
    epochs(1, 2)
    assert callback.current is None
