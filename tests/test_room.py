"""Room for checkpoints is looked for before anything slow, and never too much of it."""

import shutil
import sys
from pathlib import Path
from subprocess import PIPE, Popen
from types import SimpleNamespace
from typing import Any

import pytest

from demucs_lightning.commands import room, settings
from demucs_lightning.commands import train as training

HOLDS = """
import pathlib, sys
from demucs_lightning.commands.room import alone
with alone(pathlib.Path(sys.argv[1])):
    print("it", flush=True)
    input()
"""


@pytest.fixture
def overrides(tiny: list[str]) -> list[str]:
    small = ["model=Demucs", "model.depth=2", "model.resample=false", "segment=2", "logger=csv"]
    wide = [*tiny, "model.channels=64", "trainer.limit_test_batches=0", "batch_size=4"]
    return [*small, *wide]


def with_free(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(size)))


def size_of(overrides: list[str]) -> int:
    return room.checkpoint_size(training.build_module(settings.compose(overrides), {}))


@pytest.mark.parametrize(
    "line",
    [
        [],
        ["optim.state=bf16", "ema.batch=[0.9]"],
        ["optim.state=8bit", "ema.epoch=[0.9,0.5]", "ema.batch=[0.9]"],
        ["trainer.precision=64"],
    ],
)
def test_the_size_is_known_and_never_too_large(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: list[str]
) -> None:
    found: list[int] = []
    plain = room.checkpoint_size
    monkeypatch.setattr(
        room, "checkpoint_size", lambda module: found.append(plain(module)) or found[0]
    )
    training.run(settings.compose([*overrides, *line]), tmp_path)
    written = (tmp_path / "last.ckpt").stat().st_size
    assert 0.97 * written < found[0] <= written


def test_a_full_disk_is_found_before_training(
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(training, "fit", lambda *_: pytest.fail("it trains"))
    size = size_of(overrides)
    with_free(monkeypatch, 1.9 * size)
    with pytest.raises(SystemExit) as stop:
        training.main([*overrides, "data_root=nowhere"])  # nor are data looked at
    assert stop.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    (free, needed, each) = (room.amount(int(part * size)) for part in (1.9, 2, 1))
    wants = f"{free} free, but {needed} are needed to write checkpoints of {each}."
    assert line == f"error: {tmp_path}/run has {wants}"


def test_a_run_that_fits_is_never_refused(
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with_free(monkeypatch, 2.01 * size_of(overrides))
    training.run(settings.compose(overrides), tmp_path)
    (said,) = [each for each in caplog.messages if " free" in each]
    assert "which may not be enough" in said
    # Those of the run before are written over.
    with_free(monkeypatch, 0.1 * size_of(overrides))
    line = [*overrides, "epochs=3", f"resume_checkpoint={tmp_path}/last.ckpt"]
    training.run(settings.compose(line), tmp_path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ([], (3, 3)),
        (["trainer.limit_val_batches=0"], (2, 2)),
        (["epochs=1"], (1, 3)),
        (["epochs=2"], (2, 3)),
        (["epochs=30", "trainer.check_val_every_n_epoch=10"], (2, 3)),
        (["trainer.max_steps=1"], (1, 3)),
        (["resume_checkpoint=last.ckpt"], (1, 3)),
    ],
)
def test_how_many_are_there_at_a_time(line: list[str], expected: tuple[int, int]) -> None:
    assert room.at_a_time(settings.compose(line)) == expected


def test_hard_links_count_once(tmp_path: Path) -> None:
    (tmp_path / "best.ckpt").write_bytes(b"12345")
    (tmp_path / "last.ckpt").hardlink_to(tmp_path / "best.ckpt")
    taken: Any = getattr(room, "_taken")  # noqa: B009
    assert taken(tmp_path) == 5
    (tmp_path / "last.ckpt").unlink()
    (tmp_path / "last.ckpt").write_bytes(b"123")
    assert taken(tmp_path) == 8


def test_a_folder_belongs_to_one_run_at_a_time(
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(room, "PATIENCE", 0.1)
    folder = tmp_path / "run"
    with Popen([sys.executable, "-c", HOLDS, str(folder)], stdin=PIPE, stdout=PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"it\n"
        with pytest.raises(SystemExit) as stop:
            training.main([*overrides, f"hydra.run.dir={folder}"])
        assert stop.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: Another run writes into {folder}: wait for its end, or ")
        assert not (folder / "settings.yaml").exists()
        other.kill()
    with room.alone(folder):
        pass
