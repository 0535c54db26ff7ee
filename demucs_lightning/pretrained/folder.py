"""A local folder of models (`repo=`): bags as `.yaml`, models as `.th` or `.safetensors`.

A file is `signature.th`, `signature-checksum.th` (the start of its sha256, verified each time it is
taken) or `signature.safetensors`, as the reference's own tools write them.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from demucs_lightning.data.download import Checksum
from demucs_lightning.pretrained.bags import Bag, read_bag

SUFFIXES = (".th", ".safetensors")
CHECKSUM = re.compile(r"(.+)-([0-9a-f]{8,64})")


@dataclass(frozen=True)
class Folder:
    """The models and bags of a folder, by name."""

    path: Path
    models: dict[str, Path]
    bags: dict[str, Path]

    @property
    def names(self) -> list[str]:
        return [*self.bags, *(name for name in self.models if name not in self.bags)]

    def bag(self, name: str) -> Bag:
        """The bag of that name; a single model is a bag of one.

        Raises FileNotFoundError, with the names that the folder has, for another name.
        """
        if name in self.models:
            return Bag((name,))
        if name in self.bags:
            return read_bag(self.bags[name])
        has = f"it has {', '.join(self.names)}" if self.names else "there are no models in it"
        raise FileNotFoundError(f"{self.path} has no model {name!r}: {has}.")

    def file(self, signature: str) -> Path:
        """The file of a model. Raises FileNotFoundError, or ValueError for a wrong checksum."""
        if signature not in self.models:
            raise FileNotFoundError(
                f"{self.path} has no {signature}.th and no {signature}.safetensors."
            )
        path = self.models[signature]
        found = CHECKSUM.fullmatch(path.stem) if path.suffix == ".th" else None
        if found and not Checksum("sha256", found[2]).fits(path):
            raise ValueError(f"{path} is damaged: its sha256 does not begin with {found[2]}.")
        return path


def scan(path: str | Path) -> Folder:
    """What a folder offers.

    Raises FileNotFoundError if it is no folder, and ValueError for two files of one model.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no folder: repo must be a folder of models.")
    models: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        if file.suffix not in SUFFIXES:
            continue
        found = CHECKSUM.fullmatch(file.stem) if file.suffix == ".th" else None
        signature = found[1] if found else file.stem
        if signature in models:
            raise ValueError(
                f"{models[signature]} and {file} are both the model {signature}: keep one of them."
            )
        models[signature] = file
    bags = {file.stem: file for file in sorted(path.glob("*.yaml"))}
    return Folder(path, models, bags)
