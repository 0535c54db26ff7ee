"""Training, scoring and running Demucs music source separation models.

The public names are imported when they are first used, so that a command can say how torch is to
be loaded, and its help costs no second.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from demucs_lightning.models import Demucs, HDemucs, HTDemucs
    from demucs_lightning.pretrained import load_model
    from demucs_lightning.separator import Separator

__all__ = ["Demucs", "HDemucs", "HTDemucs", "Separator", "load_model"]

_HOME = {
    "Demucs": "models",
    "HDemucs": "models",
    "HTDemucs": "models",
    "Separator": "separator",
    "load_model": "pretrained",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
