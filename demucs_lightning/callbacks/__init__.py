"""What happens around the training itself, one file a subject."""

from demucs_lightning.callbacks.checkpoints import AtomicIO, Checkpoints
from demucs_lightning.callbacks.excerpts import Excerpts
from demucs_lightning.callbacks.finite import FiniteGuard, NonFiniteLoss
from demucs_lightning.callbacks.progress import Progress

__all__ = ["AtomicIO", "Checkpoints", "Excerpts", "FiniteGuard", "NonFiniteLoss", "Progress"]
