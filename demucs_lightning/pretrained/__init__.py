"""From a name or a file to a model, and back.

Whatever holds weights, a checkpoint of this project or a released file of either kind, is read into
a ``Package``: the name of a class, its arguments and a state dict. Reading never executes what is
in a file.
"""

from demucs_lightning.pretrained.checkpoints import (
    KEY,
    RESUMED,
    best_weights,
    check_resumable,
    check_same_model,
    check_weights,
    describe,
    load_model,
    load_weights,
    model_of,
    read_checkpoint,
)
from demucs_lightning.pretrained.package import CLASSES, Package, build

__all__ = [
    "CLASSES",
    "KEY",
    "RESUMED",
    "Package",
    "best_weights",
    "build",
    "check_resumable",
    "check_same_model",
    "check_weights",
    "describe",
    "load_model",
    "load_weights",
    "model_of",
    "read_checkpoint",
]
