"""A local folder of models (`repo=`): bags as `.yaml`, models as `.th` or `.safetensors`.

A file is `signature.th`, `signature-checksum.th` (the start of its sha256, verified each time it is
taken) or `signature.safetensors`, as the reference's own tools write them.
"""

from dataclasses import dataclass, field
from pathlib import Path

from demucs_lightning.data.download import Checksum
from demucs_lightning.pretrained.bags import Bag, read_bag
from demucs_lightning.pretrained.files import signed

SUFFIXES = (".th", ".safetensors")


@dataclass(frozen=True)
class Folder:
    """The models and bags of a folder, by name; ``others`` are second files of one model."""

    path: Path
    models: dict[str, Path]
    bags: dict[str, Path]
    others: dict[str, Path] = field(default_factory=dict)

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
        """The file of a model. Raises FileNotFoundError, or ValueError for two files of it and for
        a wrong checksum."""
        if signature not in self.models:
            raise FileNotFoundError(
                f"{self.path} has no {signature}.th and no {signature}.safetensors."
            )
        path = self.models[signature]
        if signature in self.others:
            raise ValueError(
                f"{path} and {self.others[signature]} are both the model {signature}: keep one of "
                "them."
            )
        checksum = signed(path)[1]
        if checksum and not Checksum("sha256", checksum).fits(path):
            raise ValueError(f"{path} is damaged: its sha256 does not begin with {checksum}.")
        return path


def scan(path: str | Path) -> Folder:
    """What a folder offers.

    Raises FileNotFoundError if it is no folder.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no folder: repo must be a folder of models.")
    models: dict[str, Path] = {}
    others: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        if file.suffix not in SUFFIXES:
            continue
        signature = signed(file)[0]
        (others if signature in models else models)[signature] = file
    bags = {file.stem: file for file in sorted(path.glob("*.yaml"))}
    return Folder(path, models, bags, others)
