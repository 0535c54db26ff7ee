"""Checkpoints of this project: which model they are of, and whether they are whole.

They are Lightning checkpoints of plain types, with ``"demucs_lightning"``
beside the weights: the class of the model, its arguments, and which candidate (the weights or one
of their averages) scored best. They are read with ``weights_only=True``, so nothing in a file is
ever executed, and classes come from a fixed table.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from demucs_lightning.pretrained.files import load_torch
from demucs_lightning.pretrained.package import CLASSES, Package

KEY = "demucs_lightning"
RESUMED = ("epoch", "global_step", "loops", "optimizer_states", "lr_schedulers")
NOT_ARCHITECTURE = (
    "segment",
    "memory",
)  # may differ between a checkpoint and the run that continues it


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, tensors mapped from the file, on the CPU.

    Raises FileNotFoundError or ValueError, naming the file, if it is missing, damaged, holds
    anything else than plain types and tensors, or is not from this project.
    """
    checkpoint = load_torch(path, kind="a checkpoint (.ckpt)")
    described = isinstance(checkpoint, dict) and isinstance(checkpoint.get(KEY), dict)
    if not described or "state_dict" not in checkpoint:
        raise ValueError(
            f"{path} is not a checkpoint of this project: it does not say which model it is of."
        )
    _check_structure(path, checkpoint)
    return checkpoint


def _check_structure(path: str | Path, checkpoint: Mapping[str, Any]) -> None:
    state = checkpoint[KEY]
    for key, kind in (("klass", str), ("kwargs", dict)):
        if not isinstance(state.get(key), kind):
            raise ValueError(f"{path} is damaged: it does not have {key} of its model.")
    emas = state.get("emas", {})
    averages = list(emas.values()) if isinstance(emas, dict) else [None]
    found = [each.get("state") if isinstance(each, dict) else None for each in averages]
    for weights in (checkpoint["state_dict"], *found):
        whole = isinstance(weights, dict) and all(isinstance(v, Tensor) for v in weights.values())
        if not whole:
            raise ValueError(f"{path} is damaged: it does not have weights where they should be.")
    if state.get("candidate") not in [None, "weights", *emas]:
        raise ValueError(f"{path} is damaged: it does not have the weights that it calls best.")


def check_resumable(path: str | Path, checkpoint: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the file, unless the checkpoint says where training goes on."""
    state = checkpoint[KEY]
    missing = [key for key in RESUMED if key not in checkpoint]
    missing += [key for key in ("position", "candidate", "emas") if key not in state]
    if missing:
        raise ValueError(
            f"{path} is damaged: it does not have {missing[0]}, from which training goes on."
        )


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


def _best_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state of the model as its best candidate has it."""
    state = checkpoint[KEY]
    average = state.get("emas", {}).get(state.get("candidate"), {"state": {}})
    return {**_own_weights(checkpoint), **average["state"]}


def _own_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    prefix = "model."
    weights = checkpoint["state_dict"].items()
    return {k.removeprefix(prefix): v for k, v in weights if k.startswith(prefix)}


def check_weights(model: nn.Module, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Raise ValueError, naming the file, unless all weights of the checkpoint, averages too, have
    the names and shapes of those of ``model``.
    """
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    own = {name: value.shape for name, value in _own_weights(checkpoint).items()}
    wrong = [name for name in {**wanted, **own} if wanted.get(name) != own.get(name)]
    if wrong:
        raise _misfit(wrong[0], checkpoint, path)
    _check_averages(checkpoint, path)


def _check_averages(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    own = {name: value.shape for name, value in _own_weights(checkpoint).items()}
    for average in checkpoint[KEY].get("emas", {}).values():
        if wrong := [k for k, v in average["state"].items() if own.get(k) != v.shape]:
            raise _misfit(wrong[0], checkpoint, path)


def _misfit(name: str, checkpoint: Mapping[str, Any], path: str | Path) -> ValueError:
    return ValueError(
        f"{path} is damaged: its {name} does not fit the model {checkpoint[KEY]['klass']} "
        "that it names."
    )


def load_weights(model: nn.Module, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Give ``model`` the best weights of the checkpoint. Raises what check_weights raises."""
    check_weights(model, checkpoint, path)
    model.load_state_dict(_best_weights(checkpoint))


def read(path: str | Path) -> Package:
    """The model of a checkpoint, with its best weights. Raises what read_checkpoint raises."""
    return package_of(read_checkpoint(path), path)


def package_of(checkpoint: Mapping[str, Any], path: str | Path) -> Package:
    """The model of a checkpoint that was read from ``path``, with its best weights."""
    _check_averages(checkpoint, path)
    state = checkpoint[KEY]
    return Package(state["klass"], state["kwargs"], _best_weights(checkpoint), str(path))
