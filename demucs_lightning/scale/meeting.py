"""What processes agree on before torch connects them: the folder of the run, and who fetches.

They meet at the address where torch connects them later: torchrun keeps a store there, and under
Slurm the first process does.
"""

import functools
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from demucs_lightning.scale.launch import SRUN, TORCHRUN, Launch, current, number

log = logging.getLogger(__name__)

ARRIVAL = timedelta(minutes=15)  # in which all processes of a run have to start
FETCH = timedelta(hours=12)
SILENT = timedelta(seconds=3)  # of waiting, before a line says what for
STAMP = "%Y-%m-%d/%H-%M-%S"


def started() -> str:
    """What the folder of a run is called: by the job of Slurm, which stays the same when it is
    started again, or by the time, which is that of the first process.
    """
    launch = current()
    if launch.job:
        return f"slurm/{launch.job}"
    return first_says("started", time.strftime(STAMP))


def first_says(key: str, value: str) -> str:
    """The ``value`` that the first process has, in every process; where torchrun has started them
    again, the one that it had at first.
    """
    launch = current()
    if launch.world == 1:
        return value
    store = _store(launch)
    if launch.rank == 0 and not store.check([key]):
        store.set(key, value)
    return store.get(key).decode()


@contextmanager
def first_of_machine(what: str) -> Iterator[None]:
    """Runs the block in the first process of every machine, then in the others; ``what`` says, in
    words, what they wait for. The others also go on where the first one fails.
    """
    launch = current()
    if launch.processes == 1:
        yield
        return
    store, key = _store(launch), f"{what} {launch.machine} {launch.restarts}"
    if launch.local:
        if not _arrives(store, key, SILENT):
            if launch.local == 1:
                log.warning("The other processes wait until the first one has %s.", what)
            _arrives(store, key, FETCH)
        yield
        return
    try:
        yield
    finally:
        store.set(key, "done")


def meet_again() -> None:
    """Have torch connect the processes at a new address where torchrun has started them again: at
    the former one, it would find what those before them left.
    """
    launch = current()
    if launch.by != TORCHRUN or not _is_torchruns() or not launch.restarts:
        return
    with socket.create_server(("", 0)) as free:
        port = str(free.getsockname()[1])
    os.environ["MASTER_PORT"] = first_says(f"port {launch.restarts}", port)
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"


def _arrives(store: Any, key: str, within: timedelta) -> bool:
    from torch.distributed import DistStoreError

    try:
        store.wait([key], within)
    except DistStoreError:
        return False
    return True


def _store(launch: Launch) -> Any:
    address, port = _address(launch)
    return _opened(address, port, launch.rank == 0 and not _is_torchruns())


def _is_torchruns() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


@functools.cache
def _opened(address: str, port: int, serves: bool) -> Any:
    """The store; kept, because it ends with the object, and torch goes on to use it."""
    from torch.distributed import PrefixStore, TCPStore

    store = TCPStore(
        address,
        port,
        is_master=serves,
        timeout=ARRIVAL,
        wait_for_workers=False,
        multi_tenant=not _is_torchruns(),
    )
    return PrefixStore("demucs_lightning", store)


def _address(launch: Launch) -> tuple[str, int]:
    if launch.by == SRUN:
        from lightning.fabric.plugins.environments import SLURMEnvironment

        slurm = SLURMEnvironment(auto_requeue=False)
        return slurm.main_address, slurm.main_port
    if "MASTER_ADDR" not in os.environ:
        raise ValueError("The environment variable MASTER_ADDR is missing: start with torchrun.")
    return os.environ["MASTER_ADDR"], number(os.environ, "MASTER_PORT")
