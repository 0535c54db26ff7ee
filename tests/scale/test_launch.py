"""What torchrun and srun say in the environment, and what the settings make of it."""

from pathlib import Path
from typing import Any

import pytest

from demucs_lightning.commands import processes, settings
from demucs_lightning.scale import is_first, launch, meeting
from demucs_lightning.scale.strategies import Replicated, Sharded

TORCHRUN = {
    **{"TORCHELASTIC_RUN_ID": "none", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"},
    **{"LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2"},
}
SLURM = {
    **{"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2", "SLURM_PROCID": "5"},
    **{"SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0"},
}


@pytest.mark.parametrize(("by", "env"), [("torchrun", TORCHRUN), ("srun", SLURM)])
def test_both_say_which_process_this_is(by: str, env: dict[str, str]) -> None:
    found = launch.current(env)
    assert (found.by, found.rank, found.world, found.local) == (by, 5, 8, 1)
    assert (found.processes, found.machine, found.machines) == (4, 1, 2)
    assert not found.speaks


def test_a_process_that_nobody_started_is_alone() -> None:
    assert launch.current({}) == launch.Launch()
    assert launch.current({**SLURM, "SLURM_JOB_NAME": "interactive"}) == launch.Launch()
    assert launch.current({}).speaks


def test_restarts_add_up_and_jobs_keep_their_names() -> None:
    assert launch.current({**SLURM, "SLURM_RESTART_COUNT": "2"}).restarts == 2
    both = {**TORCHRUN, "SLURM_RESTART_COUNT": "2", "TORCHELASTIC_RESTART_COUNT": "1"}
    assert launch.current(both).restarts == 3
    assert launch.current(SLURM).job == "4711"
    assert launch.current({**SLURM, "SLURM_STEP_ID": "1"}).job == "4711.1"
    array = {"SLURM_ARRAY_JOB_ID": "47", "SLURM_ARRAY_TASK_ID": "3"}
    assert launch.current({**SLURM, **array}).job == "47_3"
    assert launch.current({**TORCHRUN, "SLURM_JOB_ID": "4711"}).job == "4711"


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"SLURM_STEP_ID": None}, "write srun before"), ({"SLURM_NNODES": "3"}, "--ntasks-per-node")],
)
def test_slurm_mistakes_are_said(changed: dict[str, str | None], said: str) -> None:
    env = {key: value for key, value in {**SLURM, **changed}.items() if value is not None}
    with pytest.raises(ValueError, match=said):
        launch.current(env)


def test_a_rank_of_others_is_refused() -> None:
    with pytest.raises(ValueError, match="RANK=8, but WORLD_SIZE=8: ranks count from 0"):
        launch.current({**TORCHRUN, "RANK": "8"})
    with pytest.raises(ValueError, match="MASTER_PORT is 'hello'"):
        launch.current({**TORCHRUN, "MASTER_PORT": "hello"})
    alone = {key: value for key, value in TORCHRUN.items() if key != "TORCHELASTIC_RUN_ID"}
    with pytest.raises(ValueError, match="neither torchrun nor srun has started it"):
        launch.current(alone)
    with pytest.raises(ValueError, match="variable WORLD_SIZE is 'two'"):
        launch.current({"RANK": "1", "WORLD_SIZE": "two"})
    assert launch.current({"RANK": "0", "WORLD_SIZE": "1"}) == launch.Launch()


@pytest.mark.parametrize("env", [TORCHRUN, SLURM])
def test_a_variable_that_is_no_number_is_named(env: dict[str, str]) -> None:
    counts = {"WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "SLURM_NTASKS", "SLURM_NNODES"}
    others = {"RANK", "LOCAL_RANK", "GROUP_RANK", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"}
    others |= {"SLURM_RESTART_COUNT"}
    for name in (counts | others) & {*env, "SLURM_RESTART_COUNT"}:
        wrong = ["abc", "-1", "", "1.5"] + ["0"] * (name in counts)
        for text in wrong:
            said = f"^The environment variable {name} is '{text}': it must be a whole number, at "
            with pytest.raises(ValueError, match=said):
                launch.current({**env, name: text})
    required = {"WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"} & set(env)
    for name in required:
        with pytest.raises(ValueError, match=f"variable {name} is missing: it must be a whole"):
            launch.current({key: value for key, value in env.items() if key != name})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"MASTER_PORT": "abc"}, "MASTER_PORT is 'abc'"),
        ({}, "MASTER_PORT is missing"),
        (None, "MASTER_ADDR is missing"),
    ],
)
def test_the_address_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, str] | None, said: str
) -> None:
    env = TORCHRUN if changed is None else {**TORCHRUN, "MASTER_ADDR": "localhost", **changed}
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ValueError, match=f"^The environment variable {said}: "):
        meeting.started()


def test_the_folder_is_named_after_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in SLURM.items():
        monkeypatch.setenv(key, value)
    assert meeting.started() == "slurm/4711"


def arguments(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], *line: str) -> Any:
    with monkeypatch.context() as patch:
        for key, value in env.items():
            patch.setenv(key, value)
        cfg = settings.compose(["trainer.precision=32", *line])
        return processes.arguments(cfg)


def test_the_launcher_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = arguments(monkeypatch, TORCHRUN)
    assert (found["accelerator"], found["devices"], found["num_nodes"]) == ("cpu", 4, 2)
    assert isinstance(found["strategy"], Replicated)
    assert found["strategy"]._timeout.total_seconds() == 1800
    found = arguments(monkeypatch, SLURM, "gpus=4", "trainer.num_nodes=2", "trainer.strategy=fsdp")
    assert isinstance(found["strategy"], Sharded)
    assert not found["plugins"][1].auto_requeue
    found = arguments(monkeypatch, {})
    assert (found["devices"], found["num_nodes"], found["strategy"]) == (1, 1, "auto")


@pytest.mark.parametrize(
    ("env", "line", "said"),
    [
        (TORCHRUN, "gpus=2", "gpus=2, but torchrun has started 4 processes on each machine"),
        (TORCHRUN, "trainer.num_nodes=3", "trainer.num_nodes=3, but torchrun runs on 2"),
        ({}, "trainer.num_nodes=2", "with torchrun or srun, as docs/torchrun.md and docs/slurm.md"),
        ({}, "trainer.strategy=dpp", "must be one of auto, ddp"),
        ({}, "trainer.strategy=null", "must be one of auto, ddp"),
        ({}, "trainer.strategy=fsdp", "and this run has one: take several GPUs"),
        (TORCHRUN, "trainer.strategy=fsdp svd.penalty=1e-5", "svd.penalty needs whole weights"),
        (TORCHRUN, "trainer.strategy=fsdp trainer.precision=64", "computes in 32 or bf16"),
        (TORCHRUN, "trainer.strategy=fsdp optim.state=8bit", "divides the optimizer's state"),
    ],
)
def test_what_can_not_be_is_said(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], line: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        arguments(monkeypatch, env, *line.split())


@pytest.mark.parametrize("gpus", ["2", "[0,2]"])
def test_gpus_that_are_not_there_are_missed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, gpus: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    found = arguments(monkeypatch, {}, f"gpus={gpus}")
    assert (found["accelerator"], found["devices"], found["strategy"]) == ("cpu", 1, "auto")
    said = gpus.replace(",", ", ")
    assert caplog.messages == [
        f"gpus={said}: this machine has no such GPUs, and one process computes on its CPU."
    ]
    for line in ([], ["gpus=0"], ["gpus=[0]"], ["gpus=2", "trainer.accelerator=cpu"]):
        arguments(monkeypatch, {}, *line)
    arguments(monkeypatch, {**TORCHRUN, "LOCAL_WORLD_SIZE": "2"}, "gpus=2")
    assert len(caplog.messages) == 1


def test_a_store_brings_processes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.test_scale import torchruns

    first, second = torchruns(2)
    for key, value in first.items():
        monkeypatch.setenv(key, value)
    stamp = meeting.started()
    with meeting.first_of_machine("fetched it"):
        pass
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    entered = False
    with meeting.first_of_machine("fetched it"):
        entered = True
    assert entered
    assert meeting.started() == stamp
    assert Path(stamp).name.count("-") == 2
    meeting._opened.cache_clear()


@pytest.mark.parametrize(
    ("env", "first"),
    [
        ({}, True),
        (TORCHRUN, False),
        ({**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),  # started by Lightning
        (SLURM, False),
        ({**SLURM, "SLURM_PROCID": "0"}, True),
    ],
)
def test_one_process_is_the_first(
    env: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    assert is_first() is first
