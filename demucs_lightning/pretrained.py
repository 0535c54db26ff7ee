"""From a file to a model.

Checkpoints of this project are Lightning checkpoints of plain types, with ``"demucs_lightning"``
beside the weights: the class of the model, its arguments, and which candidate (the weights or one
of their averages) scored best. They are read with ``weights_only=True``, so nothing in a file is
ever executed, and classes come from a fixed table.
"""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from demucs_lightning.models import Demucs, HDemucs

CLASSES: dict[str, type[nn.Module]] = {"Demucs": Demucs, "HDemucs": HDemucs}
KEY = "demucs_lightning"
NOT_ARCHITECTURE = ("segment",)  # may differ between a checkpoint and the run that continues it


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, tensors mapped from the file, on the CPU.

    Raises FileNotFoundError or ValueError, naming the file, if it is missing, damaged, holds
    anything else than plain types and tensors, or is not from this project.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: a checkpoint (.ckpt) is expected there.")
    try:
        checkpoint = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is damaged or holds more than plain data: it was not opened."
        ) from error
    except (RuntimeError, EOFError, KeyError, OSError) as error:
        raise ValueError(f"{path} is damaged or no checkpoint: it can't be read.") from error
    described = isinstance(checkpoint, dict) and isinstance(checkpoint.get(KEY), dict)
    if not described or "state_dict" not in checkpoint:
        raise ValueError(
            f"{path} is not a checkpoint of this project: it does not say which model it is of."
        )
    return checkpoint


def describe(klass: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says about its model; ``klass`` is the name in the table, or a full path
    for other classes.
    """
    name = klass.rsplit(".", 1)[-1]
    known = klass.startswith("demucs_lightning.models.") and name in CLASSES
    return {"klass": name if known else klass, "kwargs": dict(kwargs)}


def check_same_model(
    path: str | Path, checkpoint: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    """Raise ValueError, naming the differences, unless the checkpoint is of the ``wanted`` (see
    describe) model.
    """
    found = checkpoint[KEY]
    if found["klass"] != wanted["klass"]:
        raise ValueError(
            f"{path} holds the model {found['klass']}, but the settings ask for {wanted['klass']}: "
            "set model to match."
        )
    ours, theirs = wanted["kwargs"], found["kwargs"]
    keys = [key for key in {**theirs, **ours} if key not in NOT_ARCHITECTURE]
    if differ := [key for key in keys if ours.get(key) != theirs.get(key)]:
        listed = ", ".join(f"{key}={theirs.get(key)} (settings: {ours.get(key)})" for key in differ)
        raise ValueError(f"{path} holds a {found['klass']} of another architecture: {listed}.")


def best_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state of the model as its best candidate has it."""
    state = checkpoint[KEY]
    prefix = "model."
    own = {
        k.removeprefix(prefix): v
        for k, v in checkpoint["state_dict"].items()
        if k.startswith(prefix)
    }
    average = state.get("emas", {}).get(state.get("candidate"), {"state": {}})
    return {**own, **average["state"]}


def load_model(path: str | Path) -> nn.Module:
    """The model of a checkpoint, with its best weights, in eval mode on the CPU.

    Raises what read_checkpoint raises, and ValueError for a class that is not in the table.
    """
    checkpoint = read_checkpoint(path)
    klass, kwargs = checkpoint[KEY]["klass"], checkpoint[KEY]["kwargs"]
    if klass not in CLASSES:
        raise ValueError(
            f"{path} holds the model {klass}; those that can be built are {', '.join(CLASSES)}."
        )
    try:
        model = CLASSES[klass](**kwargs)
        model.load_state_dict(best_weights(checkpoint))
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"{path} does not fit the model {klass} that it names: it is damaged."
        ) from error
    return model.eval()
