"""Who started this process, and which of how many it is: what torchrun and srun say in the
environment.

A process that neither of them started is alone here. Lightning may start others beside it later,
one a GPU, which it connects itself.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

TORCHRUN, SRUN, ALONE = "torchrun", "srun", ""
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
INTERACTIVE = ("bash", "interactive")  # names of jobs in which Lightning takes no notice of Slurm


@dataclass(frozen=True)
class Launch:
    """This process, number ``rank`` of ``world``, and ``local`` of the ``processes`` on its
    machine, which is number ``machine`` of ``machines``. ``restarts`` counts how often they were
    started again, ``requeued`` how often of that by Slurm; ``job`` names its job that they are.
    """

    by: str = ALONE
    rank: int = 0
    world: int = 1
    local: int = 0
    processes: int = 1
    machine: int = 0
    machines: int = 1
    restarts: int = 0
    requeued: int = 0
    job: str = ""

    @property
    def speaks(self) -> bool:
        """Whether this process says what all of its machine would say alike."""
        return self.local == 0


def current(environment: Mapping[str, str] | None = None) -> Launch:
    """What the environment says. Raises ValueError where it contradicts itself, and where Slurm
    expects more processes than run.
    """
    env = os.environ if environment is None else environment
    if "TORCHELASTIC_RUN_ID" in env and "RANK" in env:
        return _torchrun(env)
    if "SLURM_NTASKS" in env and env.get("SLURM_JOB_NAME") not in INTERACTIVE:
        return _slurm(env)
    if "RANK" in env and number(env, "WORLD_SIZE", "1") > 1:
        raise ValueError(
            "RANK and WORLD_SIZE are those of one process of several, but neither torchrun nor "
            "srun has started it: start with one of them, or unset both."
        )
    return Launch()


def is_first() -> bool:
    """Whether this process is the first one of its run, also among those that Lightning has
    started, which says no more than how they count on this machine.
    """
    return current().rank == 0 and os.environ.get("LOCAL_RANK", "0") == "0"


def _torchrun(env: Mapping[str, str]) -> Launch:
    requeued = number(env, "SLURM_RESTART_COUNT", "0")
    rank, world = number(env, "RANK"), number(env, "WORLD_SIZE", least=1)
    number(env, "MASTER_PORT", "0")
    if rank >= world:
        raise ValueError(f"RANK={rank}, but WORLD_SIZE={world}: ranks count from 0.")
    return Launch(
        TORCHRUN,
        rank=rank,
        world=world,
        local=number(env, "LOCAL_RANK"),
        processes=number(env, "LOCAL_WORLD_SIZE", least=1),
        machine=number(env, "GROUP_RANK", "0"),
        machines=number(env, "GROUP_WORLD_SIZE", "1", least=1),
        restarts=number(env, "TORCHELASTIC_RESTART_COUNT", "0") + requeued,
        requeued=requeued,
        job=slurm_job(env),
    )


def _slurm(env: Mapping[str, str]) -> Launch:
    tasks = number(env, "SLURM_NTASKS", least=1)
    machines = number(env, "SLURM_NNODES", "1", least=1)
    requeued = number(env, "SLURM_RESTART_COUNT", "0")
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
        rank=number(env, "SLURM_PROCID", "0"),
        world=tasks,
        local=number(env, "SLURM_LOCALID", "0"),
        processes=tasks // machines,
        machine=number(env, "SLURM_NODEID", "0"),
        machines=machines,
        restarts=requeued,
        requeued=requeued,
        job=slurm_job(env),
    )


def check_ranks() -> None:
    """Raise ValueError, naming it, for a variable that Lightning takes for a number as soon as it
    is loaded.
    """
    for name in RANKS:
        number(os.environ, name, "0")


def number(env: Mapping[str, str], name: str, default: str | None = None, *, least: int = 0) -> int:
    """What a variable of a launcher says. Raises ValueError, naming it, where it is no whole number
    of at least ``least``, or neither there nor of a ``default``.
    """
    text = env.get(name, default)
    if text is None or not text.strip().isdecimal() or int(text) < least:
        found = "is missing" if text is None else f"is {text!r}"
        raise ValueError(
            f"The environment variable {name} {found}: it must be a whole number, at least {least}."
        )
    return int(text)


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
