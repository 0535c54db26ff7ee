"""What happens around the training itself, one file a subject."""

from demucs_lightning.callbacks.checkpoints import AtomicIO, Checkpoints
from demucs_lightning.callbacks.evaluations import Evaluations
from demucs_lightning.callbacks.excerpts import Excerpts
from demucs_lightning.callbacks.finite import FiniteGuard, NonFiniteLoss
from demucs_lightning.callbacks.progress import Progress
from demucs_lightning.callbacks.recall import Recall
from demucs_lightning.callbacks.stopping import Stopping
from demucs_lightning.callbacks.watch import ProcessLost, Watch

__all__ = [
    "AtomicIO",
    "Checkpoints",
    "Evaluations",
    "Excerpts",
    "FiniteGuard",
    "NonFiniteLoss",
    "ProcessLost",
    "Progress",
    "Recall",
    "Stopping",
    "Watch",
]
