"""From a name or a file to a model, and back.

Whatever holds weights, a checkpoint of this project or a released file of either kind, is read into
a ``Package``: the name of a class, its arguments and a state dict. Reading never executes what is
in a file. A name, of a released model, of one on the Hugging Face hub or in a local folder, stands
for a ``Release``: the packages of one model or of a bag.
"""

from demucs_lightning.pretrained.checkpoints import (
    KEY,
    RESUMED,
    check_resumable,
    check_same_model,
    check_weights,
    describe,
    load_weights,
    read_checkpoint,
)
from demucs_lightning.pretrained.formats import read, write
from demucs_lightning.pretrained.loading import find, load_model, model_of_release
from demucs_lightning.pretrained.package import CLASSES, Package, build, check_fits
from demucs_lightning.pretrained.release import Release, member

__all__ = [
    "CLASSES",
    "KEY",
    "RESUMED",
    "Package",
    "Release",
    "build",
    "check_fits",
    "check_resumable",
    "check_same_model",
    "check_weights",
    "describe",
    "find",
    "load_model",
    "load_weights",
    "member",
    "model_of_release",
    "read",
    "read_checkpoint",
    "write",
]
