"""Runs of several processes: they compute what one would, stop together, and notice who is gone."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from demucs_lightning import pretrained
from tests.forks import Forks, forks
from tests.test_resume import assert_same_end

ROOT = Path(__file__).parents[1]
STEPS = 6
MINUTE = 60


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scale")


@pytest.fixture(scope="module")
def forked(home: Path) -> Iterator[Forks]:
    with forks(home) as found:
        yield found


@pytest.fixture(scope="module")
def overrides(musdb_root: Path) -> list[str]:
    return [
        *(f"data_root={musdb_root}", "samplerate=8000", "segment=2", "batch_size=1"),
        *("model=Demucs", "model.channels=4", "model.depth=2", "model.resample=false"),
        *("data_augmentation=false", "ema.batch=[0.9]", "logger=csv", "data.workers=0"),
        *("epochs=2", f"trainer.limit_train_batches={STEPS // 2}", "trainer.precision=32"),
        *("trainer.limit_test_batches=0", "trainer.enable_progress_bar=false"),
        *("checkpoint.every_n_minutes=0", "optim.optim=adamw"),
    ]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def torchruns(world: int, **more: str) -> list[dict[str, str]]:
    """What torchrun puts into the environment of each process on one machine."""
    shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"TORCHELASTIC_RUN_ID": "none", "GROUP_WORLD_SIZE": "1", **more}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def slurms(world: int, job: int, **more: str) -> list[dict[str, str]]:
    """What srun puts into the environment of each task on one machine."""
    shared = {"SLURM_NTASKS": str(world), "SLURM_NTASKS_PER_NODE": str(world), "SLURM_NNODES": "1"}
    shared |= {"SLURM_JOB_ID": str(job), "SLURM_JOB_NAME": "demucs", "SLURM_STEP_ID": "0"}
    shared |= {"SLURM_NODEID": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        {**shared, **more, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        for rank in range(world)
    ]


class Run:
    """A run of several processes under way, each with a log of its own."""

    def __init__(
        self,
        forked: Forks,
        argv: list[str],
        logs: Path,
        environments: list[dict[str, str]],
        faults: dict[int, dict[str, Any]] | None = None,
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.forked, self.logs, faults = forked, logs, faults or {}
        self.children = [
            forked.start(argv, logs / f"{rank}.log", env=env, **faults.get(rank, {}))
            for rank, env in enumerate(environments)
        ]

    def ended(self) -> list[int]:
        return [self.forked.wait(child) for child in self.children]

    def signal(self, number: int, rank: int) -> None:
        os.kill(self.children[rank], number)

    def said(self, rank: int) -> str:
        return (self.logs / f"{rank}.log").read_text()

    def everything(self) -> str:
        return "\n".join(f"--- {rank}\n{self.said(rank)}" for rank in range(len(self.children)))

    def errors(self) -> list[str]:
        lines = self.everything().splitlines()
        return [line for line in lines if line.startswith("error: ")]


def load(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "last.ckpt", weights_only=True)


def in_folder(folder: Path) -> list[str]:
    return [f"hydra.run.dir={folder}"]


def await_line(path: Path, words: str) -> None:
    until = time.monotonic() + 5 * MINUTE
    while words not in (path.read_text() if path.exists() else ""):
        assert time.monotonic() < until, path.read_text()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def two(forked: Forks, overrides: list[str], home: Path) -> Path:
    """The folder of an undisturbed run of two processes."""
    folder = home / "two"
    run = Run(forked, [*overrides, *in_folder(folder)], home / "logs-two", torchruns(2))
    assert run.ended() == [0, 0], run.everything()
    return folder


@pytest.mark.parametrize("world", [2, 4])
def test_processes_train_as_one_with_so_many_times_the_batch(
    forked: Forks, overrides: list[str], home: Path, world: int, request: pytest.FixtureRequest
) -> None:
    one, many = home / f"one-of-{world}", home / f"many-{world}"
    child = forked.start(
        [*overrides, f"batch_size={world}", *in_folder(one)], home / f"one-of-{world}.log"
    )
    if world == 2:
        many = request.getfixturevalue("two")
    else:
        run = Run(forked, [*overrides, *in_folder(many)], home / "logs-4", torchruns(4))
        assert run.ended() == [0] * 4, run.everything()
    assert forked.wait(child) == 0
    left, right = load(one), load(many)
    assert left["global_step"] == right["global_step"] == STEPS
    for name, value in left["state_dict"].items():
        torch.testing.assert_close(value, right["state_dict"][name], rtol=1e-4, atol=1e-6)
    scores = [each["callbacks"]["Checkpoints"]["best_score"] for each in (left, right)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("dead", [0, 1])
def test_the_survivor_says_who_died_and_the_run_goes_on(
    forked: Forks, overrides: list[str], home: Path, two: Path, dead: int
) -> None:
    folder = home / f"died-{dead}"
    line = [*overrides, "checkpoint.every_n_steps=1", *in_folder(folder)]
    faults = {dead: {"kill_at_step": 4}}
    run = Run(forked, line, home / f"logs-died-{dead}", torchruns(2), faults)
    assert forked.wait(run.children[dead]) == -signal.SIGKILL, run.everything()
    died = time.monotonic()
    assert forked.wait(run.children[1 - dead]) == 1
    assert time.monotonic() - died < MINUTE
    last = folder / "last.ckpt"
    said = f"error: Process {dead} of 2 has died. To continue: resume_checkpoint={last}"
    assert run.errors() == [said], run.everything()
    assert "Traceback" not in run.everything()
    assert load(folder)["global_step"] in (4, 5)  # its last step may have reached the other
    line += [f"resume_checkpoint={last}", *in_folder(home / f"continued-{dead}")]
    again = Run(forked, line, home / f"logs-continued-{dead}", torchruns(2))
    assert again.ended() == [0, 0], again.everything()
    assert_same_end(load(two), load(home / f"continued-{dead}"))


def test_a_survivor_that_its_launcher_stops_says_who_died(
    forked: Forks, overrides: list[str], home: Path
) -> None:
    faults = {0: {"slow": 1.0}, 1: {"slow": 1.0}}
    run = Run(
        forked, [*overrides, *in_folder(home / "both")], home / "logs-both", torchruns(2), faults
    )
    await_line(run.logs / "0.log", "step 1")
    run.signal(signal.SIGKILL, 1)
    time.sleep(0.2)
    run.signal(signal.SIGTERM, 0)
    assert run.ended() == [143, -signal.SIGKILL], run.everything()
    assert "Process 1 of 2 has died." in run.said(0)
    assert "Stopped. To continue: resume_checkpoint=" in run.said(0)


def test_of_four_the_first_survivor_speaks(forked: Forks, overrides: list[str], home: Path) -> None:
    line = [*overrides, *in_folder(home / "quartet")]
    run = Run(forked, line, home / "logs-quartet", torchruns(4), {2: {"kill_at_step": 2}})
    assert run.ended() == [1, 1, -signal.SIGKILL, 1], run.everything()
    (said,) = run.errors()
    assert said.startswith("error: Process 2 of 4 has died. To continue: ")
    last = home / "quartet" / "last.ckpt"
    assert load(last.parent)["global_step"] in (2, 3)  # written when it was noticed
    line = [*overrides, f"resume_checkpoint={last}", *in_folder(home / "reunion")]
    again = Run(forked, line, home / "logs-reunion", torchruns(4))
    assert again.ended() == [0] * 4, again.everything()
    assert load(home / "reunion")["global_step"] == STEPS


def test_a_process_that_hangs_is_given_up(forked: Forks, overrides: list[str], home: Path) -> None:
    folder = home / "hangs"
    line = [*overrides, "distributed.timeout=0.1", *in_folder(folder)]  # 6 seconds
    faults = dict.fromkeys(range(2), {"slow": 0.5})
    run = Run(forked, line, home / "logs-hangs", torchruns(2), faults)
    await_line(run.logs / "0.log", "step 1")
    run.signal(signal.SIGSTOP, 1)
    try:
        assert forked.wait(run.children[0], seconds=MINUTE) == 1, run.everything()
    finally:
        run.signal(signal.SIGKILL, 1)
        forked.wait(run.children[1])
    (said,) = run.errors()
    assert "another process has not answered for as long as distributed.timeout allows." in said
    assert "Traceback" not in run.said(0)
    assert load(folder)["global_step"] > 0


def test_a_survivor_that_waits_in_vain_is_ended(
    forked: Forks, overrides: list[str], home: Path
) -> None:
    line = [*overrides, *in_folder(home / "vain")]
    faults = {0: {"slow": 600, "impatient": 1}, 1: {"kill_before_step": 0}}
    run = Run(forked, line, home / "logs-vain", torchruns(2), faults)
    assert forked.wait(run.children[1]) == -signal.SIGKILL, run.everything()
    assert forked.wait(run.children[0], seconds=MINUTE) == 1
    (said,) = run.errors()
    assert said.startswith("error: Process 1 of 2 has died. To continue: ")


def test_a_process_that_fails_says_why_and_the_first_saves(
    forked: Forks, overrides: list[str], home: Path, two: Path
) -> None:
    folder = home / "failed"
    line = [*overrides, *in_folder(folder)]
    faults = {1: {"fail_at_step": 2}}
    run = Run(forked, line, home / "logs-failed", torchruns(2), faults)
    assert run.ended() == [1, 1], run.everything()
    first, second = run.errors()
    assert first.startswith("error: Process 1 of 2 has failed, as it says. To continue: ")
    assert second == "error: process 1 of 2: a cable was pulled"
    line += [f"resume_checkpoint={folder}/last.ckpt", *in_folder(home / "mended")]
    assert load(folder)["global_step"] == 2
    again = Run(forked, line, home / "logs-mended", torchruns(2))
    assert again.ended() == [0, 0], again.everything()
    assert_same_end(load(two), load(home / "mended"))


def test_a_signal_to_one_stops_all_at_the_same_step_and_torchrun_starts_them_again(
    forked: Forks, overrides: list[str], home: Path, two: Path
) -> None:
    line = [*overrides, *in_folder(home / "stopped")]
    faults = dict.fromkeys(range(2), {"slow": 0.5})
    run = Run(forked, line, home / "logs-stopped", torchruns(2), faults)
    await_line(run.logs / "0.log", "step 1")
    run.signal(signal.SIGTERM, 1)
    assert run.ended() == [143, 143], run.everything()
    assert 0 < load(home / "stopped")["global_step"] < STEPS
    again = torchruns(2, TORCHELASTIC_RESTART_COUNT="1")
    run = Run(forked, line, home / "logs-again", again)
    assert run.ended() == [0, 0], run.everything()
    assert f"Started again: continuing from {home}/stopped/last.ckpt" in run.said(0)
    assert_same_end(load(two), load(home / "stopped"))


@pytest.fixture
def scontrol(tmp_path: Path) -> Path:
    """A stand-in for the command of Slurm; the file holds what it was asked for."""
    asked, command = tmp_path / "asked", tmp_path / "bin" / "scontrol"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    command.chmod(0o755)
    return asked


def test_slurm_takes_the_machine_away_and_the_job_goes_on(
    forked: Forks, overrides: list[str], home: Path, two: Path, scontrol: Path
) -> None:
    path = {"PATH": f"{scontrol.parent}/bin:{os.environ['PATH']}"}
    faults = dict.fromkeys(range(2), {"slow": 0.5})
    run = Run(forked, overrides, home / "logs-slurm", slurms(2, 4711, **path), faults)
    await_line(run.logs / "0.log", "step 1")
    for rank in range(2):
        run.signal(signal.SIGUSR1, rank)
    assert run.ended() == [143, 143], run.everything()
    assert scontrol.read_text() == "requeue 4711\n"
    folder = home / "outputs" / "slurm" / "4711-Demucs"
    assert 0 < load(folder)["global_step"] < STEPS
    assert {each.name for each in folder.glob("*.log")} == {"train.log", "train_process_1.log"}
    again = slurms(2, 4711, SLURM_RESTART_COUNT="1")
    run = Run(forked, overrides, home / "logs-requeued", again)
    assert run.ended() == [0, 0], run.everything()
    assert [each.name for each in folder.parent.iterdir()] == ["4711-Demucs"]
    assert_same_end(load(two), load(folder))


def test_a_sharded_run_computes_the_same_and_its_checkpoint_is_whole(
    forked: Forks, overrides: list[str], home: Path, two: Path
) -> None:
    folder = home / "sharded"
    line = [*overrides, "trainer.strategy=fsdp", "optim.clip_grad=1e3", *in_folder(folder)]
    faults = dict.fromkeys(range(2), {"slow": 0.5})
    run = Run(forked, line, home / "logs-sharded", torchruns(2), faults)
    await_line(run.logs / "0.log", "step 1")
    run.signal(signal.SIGTERM, 1)
    assert run.ended() == [143, 143], run.everything()
    stopped = load(folder)
    assert 0 < stopped["global_step"] < STEPS
    line += ["trainer.limit_test_batches=1.0"]
    again = torchruns(2, TORCHELASTIC_RESTART_COUNT="1")
    run = Run(forked, line, home / "logs-reunited", again)
    assert run.ended() == [0, 0], run.everything()
    assert "Dan - Four" in run.said(0)  # the table of the test set
    left, right = load(two), load(folder)
    averages = [
        each["demucs_lightning"]["emas"]["ema_batch_0.9"]["state"] for each in (left, right)
    ]
    for ours, theirs in ((left["state_dict"], right["state_dict"]), averages):
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-7)
    model: Any = pretrained.load_model(folder / "last.ckpt")
    assert model.sources[0] == "drums"


def test_torchrun_on_two_machines(overrides: list[str], home: Path, two: Path) -> None:
    folder, port = home / "machines", str(free_port())
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launches = []
    for machine in range(2):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        command += ["--node-rank", str(machine), "--nproc-per-node", "1"]
        command += ["--master-addr", "127.0.0.1", "--master-port", port]
        command += [str(ROOT / "train.py"), *overrides]
        with (folder / f"{machine}.log").open("w") as log:
            launches.append(
                subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
            )
    statuses = [launch.wait(5 * MINUTE) for launch in launches]
    assert statuses == [0, 0], "\n".join(path.read_text() for path in folder.glob("*.log"))
    (found,) = (folder / "outputs").glob("*/*-Demucs")  # both agree on the time
    assert_same_end(load(two), load(found))
