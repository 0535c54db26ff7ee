"""The strategies of Lightning for several processes, with two changes: a process that is started
here and dies is no reason to kill the others before they have said so and saved what they have; and
a sharded model is written, read and scored as a whole.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from demucs_lightning.scale import sharding

log = logging.getLogger(__name__)

PERIOD = 0.5  # seconds between two looks at the processes
WRITING = 1800.0  # seconds for a last checkpoint after another process has ended


class Launcher(_SubprocessScriptLauncher):
    """Starts the other processes of this machine. Where one ends before they are connected, ends
    the others; after that ``callbacks.Watch`` does.
    """

    def _call_children_scripts(self) -> None:
        super()._call_children_scripts()
        # Lightning kills this process seconds after one of its own is gone: give it none to watch.
        self.children, self.procs = self.procs, []
        threading.Thread(target=self._observe, daemon=True).start()

    def kill(self, signum: Any) -> None:
        for process in getattr(self, "children", []):
            process.send_signal(signum)

    def _observe(self) -> None:
        while all(process.poll() in (None, 0) for process in self.children):
            time.sleep(PERIOD)
        gone = next(p for p in self.children if p.poll() not in (None, 0))
        if _initialized():
            time.sleep(WRITING)
        self.kill(signal.SIGKILL)
        rank = self.children.index(gone) + 1
        sys.stderr.write(f"error: {_ended(rank, len(self.children) + 1, gone)}\n")
        sys.stderr.flush()
        os._exit(1)


def _initialized() -> bool:
    from torch import distributed

    return distributed.is_initialized()


def _ended(rank: int, world: int, process: subprocess.Popen[Any]) -> str:
    return f"Process {rank} of {world} has ended with status {process.returncode}."


class Replicated(DDPStrategy):
    """DDP: every process has the whole model."""

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        _own_launcher(self)


class Sharded(ModelParallelStrategy):
    """FSDP: weights, gradients and the state of the optimizer are divided among all processes, and
    every layer is put together while it computes. See ``sharding``.
    """

    def __init__(self, *, timeout: timedelta) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout)

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        _own_launcher(self)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: Any) -> None:
        module: Any = self.model
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        self.model_to_device()
        if trainer.state.fn == "fit":
            sharding.shard(module.model, self.device_mesh["data_parallel"])
            self.barrier()
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        super().save_checkpoint(sharding.whole(checkpoint), filepath, storage_options)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = True
    ) -> dict[str, Any]:
        checkpoint = super().load_checkpoint(checkpoint_path, weights_only=True)
        module: Any = self.model
        sharding.divide(checkpoint, dict(module.model.named_parameters()))
        return checkpoint

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Done by ``load_checkpoint``."""


def _own_launcher(strategy: Any) -> None:
    if type(strategy._launcher) is _SubprocessScriptLauncher:
        environment = strategy.cluster_environment
        strategy._launcher = Launcher(environment, strategy.num_processes, strategy.num_nodes)
