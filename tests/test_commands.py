"""The commands, as a user types them."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from demucs_lightning import commands, pretrained
from demucs_lightning.commands import settings
from demucs_lightning.commands import test as scoring
from demucs_lightning.commands import train as training
from demucs_lightning.training import LitSeparator

REPOSITORY = Path(__file__).parents[1]
LINES = [
    "gpus=[0] model=Demucs download=True",
    "gpus=[0] model=HDemucs download=True",
    "batch_size=2 augment.remix.group_size=2 model=Demucs",
    "batch_size=1 data_augmentation=False model=Demucs",
    "batch_size=1 data_augmentation=False segment=6 model=Demucs",
]


@pytest.mark.parametrize("line", [*LINES, "gpus=[0] model=HTDemucs model.dconv_comp=4"])
def test_the_five_command_lines_train_and_score(
    line: str, tiny: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    training.main([*line.split(), *tiny])
    folder = tmp_path / "run"
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    assert (folder / "best.ckpt").is_file()
    assert OmegaConf.load(folder / "settings.yaml").samplerate == 8000
    assert list((folder / "tensorboard").glob("events.*"))
    text = (folder / "train.log").read_text()
    assert "no GPU found" in text
    assert "MusdbHQ: 3 tracks" in text
    assert "Dan - Four" in text  # the table of the test set


def test_training_saves_what_test_scores(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["model=Demucs", "batch_size=2", "data_augmentation=False", "segment=2"]
    training.main([*line, "model.depth=2", "logger=csv", *tiny])
    best = tmp_path / "run" / "best.ckpt"
    root, out = tiny[0], f"hydra.run.dir={tmp_path}/scored"
    scoring.main([f"resume_checkpoint={best}", root, out, "data.workers=0", "logger=csv"])
    table = capsys.readouterr().out
    starts = ("1/2 Dan - Four: nSDR", "2/2 Eve - Five: nSDR", "nSDR median", "SDR mean", "SDR: ")
    assert all(any(line.startswith(start) for line in table.splitlines()) for start in starts)
    model = pretrained.load_model(best)
    assert model.sources == ["drums", "bass", "other", "vocals"]
    assert model.segment == 8  # four times the training segment
    assert not model.training


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("epocs=3", "did you mean epochs"),
        ("model=XYZ", "choose from Demucs, DemucsV2, HDemucs, HTDemucs"),
        ("data_root=nowhere", "download=True"),
        ("resume_checkpoint=nowhere.ckpt", "nowhere.ckpt does not exist"),
        ("batch_size=3", "augment.remix.group_size=4 does not divide batch_size=3"),
    ],
)
def test_mistakes_end_in_one_sentence(
    line: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        training.main([line, "logger=csv", "model.channels=4"])
    assert stop.value.code == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert error[0].startswith("error: ")
    assert said in error[0]
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir"])
def test_a_folder_that_can_not_be_made(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").touch()
    flags = ["-m"] if "sweep" in key else []
    with pytest.raises(SystemExit) as stop:
        training.main([*flags, f"{key}={tmp_path}/taken/x"])
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: The folder {tmp_path}/taken/x can't be written (")
    assert f"set {key} to" in line


def test_a_device_for_tests_that_is_not_there_is_said_before_training(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        training.main(["model=Demucs", *tiny, "test.every=1", "test.device=cuda:1"])
    assert stop.value.code == 1
    said = "error: test.device is cuda:1: this machine has no CUDA device.\n"
    assert capsys.readouterr().err == said


def test_several_values_of_one_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        training.main(["gpus=2,3"])
    assert stop.value.code == 1
    said = "gpus=2,3 is several values: gpus=[2,3] is a list, \"gpus='2,3'\" a text, and -m starts"
    assert capsys.readouterr().err == f"error: {said} a run with each.\n"


def test_a_missing_test_set_is_said_before_training(
    tiny: list[str], tmp_path: Path, musdb_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "songs"
    shutil.copytree(musdb_root, root, ignore=shutil.ignore_patterns("test"))
    line = ["model=Demucs", *tiny, f"data_root={root}", "logger=csv"]
    with pytest.raises(SystemExit):
        training.main(line)
    assert "error: No test tracks" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("command", [training, scoring])
@pytest.mark.parametrize("part", ["kwargs", "sources", "samplerate", "weight", "position"])
def test_a_damaged_checkpoint_is_said(
    command: Any, part: str, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ["model=Demucs", "model.channels=4", "model.depth=2", "data_root=nowhere"]
    description = training.describe_model(settings.compose(shape))
    model = pretrained.CLASSES["Demucs"](**description["kwargs"])
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    about: dict[str, Any] = {**description, "candidate": "weights", "emas": {}}
    about["position"] = [0, 1]
    for node in (about, about["kwargs"]):
        node.pop(part, None)
    if part == "weight":
        weights.popitem()
    rest = dict.fromkeys(pretrained.RESUMED, 0)
    torch.save({"state_dict": weights, "demucs_lightning": about, **rest}, tmp_path / "a.ckpt")
    line = [*shape, f"resume_checkpoint={tmp_path}/a.ckpt", f"hydra.run.dir={tmp_path}/run"]
    with pytest.raises(SystemExit) as stop:
        command.main([*line, "logger=csv"])
    assert stop.value.code == 1
    (error,) = capsys.readouterr().err.splitlines()
    plain = (command, part) in ((scoring, "position"), (scoring, "samplerate"))
    if plain:  # scoring does without
        assert "nowhere" in error
    elif (command, part) == (training, "samplerate") or part == "sources":
        assert "a.ckpt" in error
    else:
        assert f"error: {tmp_path}/a.ckpt is damaged: " in error


def test_a_mistake_has_no_traceback_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, str(REPOSITORY / "train.py"), "gpus=foo"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    said = "error: gpus is foo: it must be a number of GPUs (gpus=2, or 0 for the CPU) or a list "
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", f"{said}(gpus=[0,2]).\n")
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="gpus is foo"):
        training.main(command[2:])


SLOW = """
import sys, time
print("loading", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    raise ImportError("torch failed to import") from None
"""
STARTED = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests run under
sys.path.insert(0, "{folder}")
{start}
"""


@pytest.mark.parametrize(
    "start",
    [
        "runpy.run_path('train.py', run_name='__main__')",
        "runpy.run_path('test.py', run_name='__main__')",
        "sys.argv += ['train']; from demucs_lightning.commands import main; main()",
    ],
)
def test_ctrl_c_while_torch_is_loaded_is_quiet(start: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(SLOW)
    command = [sys.executable, "-c", STARTED.format(folder=tmp_path, start=start)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "Interrupted.\n")


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_a_rank_that_is_no_number_is_told_before_lightning_reads_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "first")
    said = f"error: The environment variable {name} is 'first': it must be a whole number, at least"
    for command in commands.TRAINING:
        with pytest.raises(SystemExit, match=said):
            commands.main([command])
    commands.loaded("compare")  # reads no rank


def test_scoring_needs_a_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        scoring.main([f"hydra.run.dir={tmp_path}"])
    assert stop.value.code == 1
    assert "error: test needs resume_checkpoint=PATH" in capsys.readouterr().err


def test_two_processes_train_as_one_with_twice_the_batch(tiny: list[str], tmp_path: Path) -> None:
    line = ["model=Demucs", "model.depth=2", "model.resample=false", "segment=2", "logger=csv"]
    line += ["data_augmentation=False", *tiny, "trainer.limit_val_batches=1.0", "optim.optim=adamw"]
    training.main([*line, "batch_size=4"])
    command = [sys.executable, str(REPOSITORY / "train.py"), *line, "batch_size=2"]
    command += ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp"]
    command += [f"hydra.run.dir={tmp_path}/two"]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=240)
    one, two = (
        torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("run", "two")
    )
    assert one["global_step"] == two["global_step"] == 2
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(value, two["state_dict"][name], rtol=1e-4, atol=1e-6)
    metrics = [(tmp_path / name / "csv" / "metrics.csv").read_text() for name in ("run", "two")]
    scores = [[float(x) for x in text.splitlines()[1].split(",") if x] for text in metrics]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3, abs=1e-3)


def test_the_command_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    commands.main(["--help"])
    said = capsys.readouterr().out
    assert all(f"  {name}" in said for name in commands.COMMANDS)
    with pytest.raises(SystemExit, match=f"there are {', '.join(commands.COMMANDS)}"):
        commands.main(["fly"])


def test_the_command_hands_on_its_arguments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["demucs-lightning"])
    with pytest.raises(SystemExit):
        commands.main(["train", "epochs=abc"])
    assert capsys.readouterr().err == "error: epochs is 'abc': it must be a whole number.\n"


def test_a_checkpoint_can_not_make_test_call_anything(tiny: list[str], tmp_path: Path) -> None:
    training.main([*tiny, "trainer.max_steps=1"])
    checkpoint = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    canary = {"_target_": "os.mkdir", "path": str(tmp_path / "canary")}
    checkpoint[pretrained.KEY]["kwargs"]["wiener_residual"] = canary
    torch.save(checkpoint, tmp_path / "hostile.ckpt")
    with pytest.raises(SystemExit):
        scoring.main([*tiny, f"resume_checkpoint={tmp_path}/hostile.ckpt"])
    assert not (tmp_path / "canary").exists()


def test_a_gpu_that_runs_out_of_memory_says_what_takes_less(
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def exhausted(*_: Any) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
            "7.79 GiB of which 1.10 GiB is free."
        )

    monkeypatch.setattr(LitSeparator, "training_step", exhausted)
    with pytest.raises(SystemExit) as stop:
        training.main(["model=Demucs", "model.depth=2", "trainer.precision=32", *tiny])
    assert stop.value.code == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: The device ran out of memory with batch_size=4, segment=11, ")
    assert re.search(r": try, by estimate, experiment=low_memory \(about \d+ MB less\), m", said)
    assert said.endswith(". It asked for 2.1 GB more of 8.4 GB.")
