"""Put the folders of a zip in place: all of them whole, or nothing.

Contract: names that lead out of the folder are refused before anything is written; what is written
stands in a hidden folder until it is complete, and that folder is gone however it ends.
"""

import contextlib
import errno
import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from demucs_lightning.data import disk

Members = dict[PurePosixPath, zipfile.ZipInfo]

DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    UnicodeDecodeError,
    NotImplementedError,
    RuntimeError,
)


def unpack(archive: str | Path, folder: str | Path) -> None:
    """Extract the zip `archive` into `folder`.

    What stands at the top of the archive (``train/`` and ``test/``, say) is renamed into place once
    everything is written. What is there already, whole, is kept; nothing is overwritten.
    Raises `FileNotFoundError`, `ValueError` (damaged or hostile), `FileExistsError` (something else
    has the name) or `OSError` (the disk).
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise FileNotFoundError(f"there is no archive {archive}")
    new_folder = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with disk.locked(folder), _opened(archive) as file:
            members = _checked(file, archive)
            tops = _missing_tops(members, folder)
            wanted = {name: info for name, info in members.items() if name.parts[0] in tops}
            _extract(file, wanted, folder, tops)
    finally:
        if new_folder and not any(folder.iterdir()):
            folder.rmdir()


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    """The open archive; whatever its bytes make the decoders raise becomes one sentence."""
    try:
        with zipfile.ZipFile(archive) as file:
            yield file
    except (*DAMAGE, OSError) as error:
        # Invalid argument: a position before the start of the file. Other OSErrors are the disk's.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ValueError(
            f"{archive} can't be unpacked ({error}): delete it and fetch it again"
        ) from error


def _checked(file: zipfile.ZipFile, archive: Path) -> Members:
    """Every entry by its path; refuses the archive for one that is no plain file or folder."""
    members = {}
    for info in file.infolist():
        name = info.filename
        path = PurePosixPath(name)
        if not path.parts or path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{archive} holds the name {name!r}, which leads out of its folder")
        if "\\" in name or re.match("[A-Za-z]:", name):
            raise ValueError(f"{archive} holds the name {name!r}, which is no portable path")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"{archive} holds {name!r}, which is neither a file nor a folder")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{archive} holds {name!r}, which is neither stored nor deflated")
        members[path] = info
    return members


def _missing_tops(members: Members, folder: Path) -> list[str]:
    """The first path components that `folder` lacks; refuses those that are there but not whole."""
    tops = list(dict.fromkeys(name.parts[0] for name in members))
    present = {top for top in tops if os.path.lexists(folder / top)}
    for name, info in members.items():
        here = folder / name
        whole = here.is_dir() if info.is_dir() else disk.size_of(here) == info.file_size
        if name.parts[0] in present and not (here.exists() and whole):
            raise FileExistsError(
                f"{folder / name.parts[0]} is there already, but not with the archive's {name}: "
                "move it away first"
            )
    return [top for top in tops if top not in present]


def _extract(file: zipfile.ZipFile, members: Members, folder: Path, tops: list[str]) -> None:
    """Write `members` beside their places, then rename the `tops` into `folder` one by one."""
    missing = sum(info.file_size for info in members.values())
    disk.check_space(folder, missing, purpose=f"unpack {file.filename}")
    staging = folder / f".{Path(str(file.filename)).name}.unpacking"
    shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
    try:
        with disk.progress(missing, f"unpacking {file.filename}") as bar:
            for name, info in members.items():
                target = staging / name
                if info.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with file.open(info) as source, target.open("wb", buffering=0) as output:
                    while chunk := source.read(disk.CHUNK):
                        disk.write(output, chunk, missing=missing)
                        missing -= len(chunk)
                        bar.update(len(chunk))
        for top in tops:
            (staging / top).rename(folder / top)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
