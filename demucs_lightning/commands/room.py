"""Whether a run has its folder for itself, and the disk room for its checkpoints: both are known
before it begins.
"""

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from demucs_lightning.data.disk import amount, check_space
from demucs_lightning.moments import BLOCK
from demucs_lightning.scale import current, is_first

try:
    import fcntl
except ImportError:  # not POSIX: two runs in one folder are then the user's to avoid
    fcntl = None

log = logging.getLogger(__name__)

LOCK = ".lock"  # in the folder of a run
PATIENCE = 10  # seconds: a process that was killed gives up its lock when its memory is freed
LONG = 20  # validations, one of which will not be the best so far
# Bytes of one of Adam's two averages, of a weight; fp32 stands for the type of the weight itself.
STATES = {"bf16": 2.0, "8bit": 1 + 4 / BLOCK}


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep ``folder`` for this run while the block lasts, wherever its disk has locks. A run that
    Slurm or torchrun has started again takes it as it is.

    Raises ValueError where another run has it.
    """
    if fcntl is None or not is_first() or current().restarts:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    late = time.monotonic() + PATIENCE
    with (folder / LOCK).open("ab") as file:  # the folder's own lock is for what sets up data
        while not _locks(file.fileno()):
            if time.monotonic() > late:
                raise ValueError(
                    f"Another run writes into {folder}: wait for its end, or give this one a "
                    "folder of its own, hydra.run.dir=..."
                )
            time.sleep(0.1)
        yield


def _locks(handle: int) -> bool:
    assert fcntl is not None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a network's disk without locks
        log.debug("no lock: %s", error)
    return True


def check_room(cfg: DictConfig, module: Any, folder: Path) -> None:
    """Raise OSError, in a sentence with both sizes, unless ``folder`` has room for the checkpoints
    of ``module`` that it is sure to hold at a time; warn where they may become more than that.
    """
    size, taken = checkpoint_size(module), _taken(folder)
    least, most = at_a_time(cfg)
    here = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    check_space(here, least * size - taken, purpose=f"write checkpoints of {amount(size)}")
    if most * size - taken > (free := shutil.disk_usage(here).free):
        log.warning(
            "%s has %s free, which may not be enough: a checkpoint has %s, and there are up to %d.",
            *(here, amount(free), amount(size), most),
        )


def at_a_time(cfg: DictConfig) -> tuple[int, int]:
    """How many checkpoints the folder of a run holds at least, at some moment, and at most:
    best.ckpt, last.ckpt, and the one that is being written. In a run of few epochs the best may
    always be the last, and one that ends early writes a single one.
    """
    trainer, epochs = cfg.trainer, cfg.trainer.max_epochs
    most = 3 if trainer.limit_val_batches else 2
    if trainer.max_steps > 0 or trainer.get("max_time") or cfg.resume_checkpoint:
        return 1, most
    if epochs is None or epochs < 0 or epochs >= LONG * (trainer.check_val_every_n_epoch or 1):
        return most, most
    return min(2, epochs), most


def checkpoint_size(module: Any) -> int:
    """Bytes of the tensors in a checkpoint of ``module``, whose weights are in place."""
    state = list(module.model.state_dict().values())
    weights = [weight for weight in module.model.parameters() if weight.requires_grad]
    moments = sum(2 * _bytes(weight, module.optim.state) for weight in weights)
    average = sum(value.nbytes for value in state if value.is_floating_point())
    return int(sum(value.nbytes for value in state) + moments + len(module.emas) * average)


def _bytes(weight: Tensor, state: str) -> float:
    return weight.numel() * STATES.get(state, weight.element_size())


def _taken(folder: Path) -> int:
    """Bytes of the checkpoints that are there from before, and will be written over."""
    files = [
        path.stat() for path in map(folder.joinpath, ("last.ckpt", "best.ckpt")) if path.exists()
    ]
    return sum({each.st_ino: each.st_size for each in files}.values())
