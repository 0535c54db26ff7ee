"""Who started this process, and which of how many it is: what torchrun and srun say in the
environment.

A process that neither of them started is alone here. Lightning may start others beside it later,
one a GPU, which it connects itself.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

TORCHRUN, SRUN, ALONE = "torchrun", "srun", ""
INTERACTIVE = ("bash", "interactive")  # names of jobs in which Lightning takes no notice of Slurm


@dataclass(frozen=True)
class Launch:
    """This process, number ``rank`` of ``world``, and ``local`` of the ``processes`` on its
    machine, which is number ``machine`` of ``machines``. ``restarts`` counts how often they were
    started again, ``job`` names the job of Slurm that they are.
    """

    by: str = ALONE
    rank: int = 0
    world: int = 1
    local: int = 0
    processes: int = 1
    machine: int = 0
    machines: int = 1
    restarts: int = 0
    job: str = ""

    @property
    def speaks(self) -> bool:
        """Whether this process says what all of its machine would say alike."""
        return self.local == 0


def current(environment: Mapping[str, str] | None = None) -> Launch:
    """What the environment says. Raises ValueError where Slurm expects more processes than run."""
    env = os.environ if environment is None else environment
    if "TORCHELASTIC_RUN_ID" in env and "RANK" in env:
        return _torchrun(env)
    if "SLURM_NTASKS" in env and env.get("SLURM_JOB_NAME") not in INTERACTIVE:
        return _slurm(env)
    return Launch()


def _torchrun(env: Mapping[str, str]) -> Launch:
    return Launch(
        TORCHRUN,
        rank=int(env["RANK"]),
        world=int(env["WORLD_SIZE"]),
        local=int(env["LOCAL_RANK"]),
        processes=int(env["LOCAL_WORLD_SIZE"]),
        machine=int(env.get("GROUP_RANK", 0)),
        machines=int(env.get("GROUP_WORLD_SIZE", 1)),
        restarts=sum(int(env.get(f"{by}_RESTART_COUNT", 0)) for by in ("TORCHELASTIC", "SLURM")),
        job=slurm_job(env),
    )


def _slurm(env: Mapping[str, str]) -> Launch:
    tasks, machines = int(env["SLURM_NTASKS"]), int(env.get("SLURM_NNODES", 1))
    if tasks > 1 and "SLURM_STEP_ID" not in env:
        raise ValueError(
            f"Slurm has set {tasks} tasks aside, but this is one process alone: write srun before "
            "python."
        )
    if tasks % machines or (tasks > 1 and "SLURM_NTASKS_PER_NODE" not in env):
        raise ValueError(
            f"Slurm runs {tasks} tasks on {machines} machines: say how many run on each, with "
            "--ntasks-per-node."
        )
    return Launch(
        SRUN,
        rank=int(env.get("SLURM_PROCID", 0)),
        world=tasks,
        local=int(env.get("SLURM_LOCALID", 0)),
        processes=tasks // machines,
        machine=int(env.get("SLURM_NODEID", 0)),
        machines=machines,
        restarts=int(env.get("SLURM_RESTART_COUNT", 0)),
        job=slurm_job(env),
    )


def slurm_job(env: Mapping[str, str]) -> str:
    """The job's number, with that of its task in an array and of a step after the first: the same
    whenever Slurm starts it again. Empty without one.
    """
    job = slurm_number(env)
    step = env.get("SLURM_STEP_ID", "0")
    return f"{job}.{step}" if job and step.isdigit() and step != "0" else job


def slurm_number(env: Mapping[str, str]) -> str:
    """The job as ``scontrol`` knows it, empty without one."""
    if "SLURM_ARRAY_JOB_ID" in env and "SLURM_ARRAY_TASK_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID", "") if env.get("SLURM_JOB_NAME") not in INTERACTIVE else ""
