"""Files of weights by the ends of their names: which module reads and writes them."""

from pathlib import Path

from demucs_lightning.pretrained import checkpoints, official, tensors
from demucs_lightning.pretrained.package import Package

READERS = {".ckpt": checkpoints.read, ".th": official.read, ".safetensors": tensors.read}
WRITERS = {".th": official.write, ".safetensors": tensors.write}


def read(path: str | Path) -> Package:
    """The package in a file of weights: ``.ckpt`` of this project, ``.th`` or ``.safetensors`` of
    demucs. Nothing in a file is ever executed.

    Raises FileNotFoundError or ValueError, naming the file, if it is missing, of another kind, or
    can't be read as a model.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in READERS:
        raise ValueError(f"{path} can't be read: its name must end in {_either(READERS)}.")
    return READERS[suffix](path)


def write(package: Package, path: str | Path, *, half: bool = True) -> None:
    """Write a package to ``.th`` or ``.safetensors``, as demucs 4.1 reads it; whole, or not at all.

    ``half``: weights in fp16, else fp32. Raises ValueError for another name, for a model that is
    not one of demucs and for weights beyond fp16, and OSError where the disk fails.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in WRITERS:
        raise ValueError(f"{path} can't be written: its name must end in {_either(WRITERS)}.")
    WRITERS[suffix](package, path, half=half)


def _either(suffixes: dict) -> str:
    *most, last = suffixes
    return f"{', '.join(most)} or {last}"
