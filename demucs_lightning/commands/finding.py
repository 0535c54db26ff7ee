"""Which tracks a command line names: files, and those in folders."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# What is looked for in folders. A file that is named is tried, whatever it is called.
SUFFIXES = {
    *(".wav", ".wave", ".w64", ".rf64", ".flac", ".aiff", ".aif", ".aifc", ".au", ".caf", ".wv"),
    *(".mp3", ".mp2", ".m4a", ".m4b", ".mp4", ".aac", ".ogg", ".oga", ".opus", ".wma", ".ac3"),
    *(".ape", ".tta", ".mka", ".mkv", ".webm", ".mov", ".avi"),
}
PATTERN = {*"*?["}  # what a shell that finds no such file leaves as it is


@dataclass(frozen=True)
class Track:
    """A file, and the folders between the one that was asked for and it; or what is wrong."""

    path: Path
    below: Path = Path()
    fault: str = ""


def named(texts: Sequence[str]) -> list[Path]:
    """The paths on a command line; ValueError for what can't be one."""
    for text in texts:
        if not text:
            raise ValueError("A track's name is empty: name audio files, or folders of them.")
        if "://" in text and not os.path.lexists(text):
            raise ValueError(f"{text} is an address, and nothing is fetched: name a file.")
    return [Path(text) for text in texts]


def found(paths: Sequence[Path], *, leaving_out: Sequence[Path]) -> list[Track]:
    """The files that are named, and those in folders that are, each once and in order; not those
    in folders of ``leaving_out``, where stems go, that lie inside a folder that is named."""
    tracks: dict[str, Track] = {}
    for path in paths:
        if not os.path.isdir(path):  # False for a name that no file can have
            tracks.setdefault(os.path.realpath(path), Track(path, fault=_fault(path)))
            continue
        home = Path(os.path.realpath(path))
        places = [Path(os.path.realpath(place)) for place in leaving_out]
        places = [place for place in places if home in place.parents]
        inside = [file for file in sorted(path.rglob("*")) if _is_track(file, path, places)]
        for file in inside:
            track = Track(file, file.relative_to(path).parent, _fault(file))
            tracks.setdefault(os.path.realpath(file), track)
        if not inside:
            tracks[str(home)] = Track(path, fault=f"{path} is a folder without audio files.")
    return list(tracks.values())


def _fault(path: Path) -> str:
    """What is wrong with a name that stands for no file; else opening the file tells it."""
    if os.path.exists(path):
        return ""
    if os.path.islink(path):
        return f"{path} is a link to {os.readlink(path)}, which is not there."
    if PATTERN & {*path.name}:
        return f"{path} is not there: the shell found no file that is called like this."
    return ""


def _is_track(file: Path, folder: Path, leaving_out: Sequence[Path]) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    if hidden or file.suffix.lower() not in SUFFIXES:
        return False
    if not file.is_file() and (file.exists() or not file.is_symlink()):
        return False
    return not {*leaving_out} & {*Path(os.path.realpath(file)).parents}
