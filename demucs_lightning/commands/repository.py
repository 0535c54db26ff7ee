"""Models as files of a folder that demucs reads as its repository (`demucs --repo FOLDER`)."""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from demucs_lightning import pretrained
from demucs_lightning.pretrained.files import signed

CHECKSUM = 8  # hexadecimal digits of the sha256 that stand in a file's name


def same_model(folder: Path, wanted: str) -> list[Path]:
    """The .th files of that signature: demucs refuses a folder that has two."""
    files = sorted(folder.glob("*.th")) if folder.is_dir() else []
    return [file for file in files if wanted in (file.stem, signed(file)[0])]


def check_target(out: Path, files: Sequence[Path], *, overwrite: bool) -> None:
    """Raise OSError, naming it, for a folder that can't be written to, and unless ``overwrite``
    for the first of ``files`` that exists. The folder is made."""
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder: a file is to be written there.")
    for file in files:
        if file.exists() and not overwrite:
            raise FileExistsError(f"{file} exists: add --overwrite to replace it.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise OSError(f"{out.parent} can't be written to: {error.strerror}.") from error


def size_of(package: pretrained.Package, *, half: bool) -> int:
    """Bytes of the weights, written in half precision or in full."""
    return sum(value.numel() for value in package.state.values()) * (2 if half else 4)


def write_signed(
    package: pretrained.Package, folder: Path, name: str | None = None, *, half: bool
) -> Path:
    """Write ``folder/NAME-CHECKSUM.th``; without a ``name``, it is of the content, too."""
    part = Path(tempfile.mkdtemp(prefix=".export-", dir=folder)) / "model.th"
    try:
        pretrained.write(package, part, half=half)
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        name = digest[CHECKSUM : 2 * CHECKSUM] if name is None else name
        return part.replace(folder / f"{name}-{digest[:CHECKSUM]}.th")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder / f"{name or 'model'}.th")) from error
    finally:
        part.unlink(missing_ok=True)
        part.parent.rmdir()
