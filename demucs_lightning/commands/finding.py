"""Which tracks a command line names: files, and those in folders."""

import os
from collections.abc import Iterator, Sequence
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
    in folders of ``leaving_out``, where stems go, unless a folder in them is named. Links to
    folders are followed, and a folder that can't be read is a track with a fault."""
    tracks: dict[str, Track] = {}
    for path in paths:
        if not os.path.isdir(path):  # False for a name that no file can have
            tracks.setdefault(os.path.realpath(path), Track(path, fault=_fault(path)))
            continue
        home = Path(os.path.realpath(path))
        places = [Path(os.path.realpath(place)) for place in leaving_out]
        places = [place for place in places if place not in (home, *home.parents)]
        inside = sorted(_tracks_in(path, places), key=lambda track: track.path)
        for track in inside:
            tracks.setdefault(os.path.realpath(track.path), track)
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


def _tracks_in(folder: Path, leaving_out: Sequence[Path]) -> Iterator[Track]:
    """The files below a folder, and the folders in it that can't be read, as faults."""
    read = {*Path(os.path.realpath(folder)).parents}  # a link to one would lead round in circles
    waiting, faults = [folder], []
    for start in waiting:  # links behind all else, so that what is in the folder has its own name
        for name, folders, files in os.walk(start, onerror=faults.append):
            place, real = Path(name), Path(os.path.realpath(name))
            if real in read:
                folders.clear()
                continue
            read.add(real)
            folders[:] = [each for each in folders if not _is_left_out(place / each, leaving_out)]
            waiting += [place / each for each in sorted(folders) if (place / each).is_symlink()]
            for file in [place / each for each in files]:
                if _is_sound(file) and not _is_left_out(file, leaving_out):
                    yield Track(file, place.relative_to(folder), _fault(file))
    for error in faults:
        yield Track(
            Path(error.filename), fault=f"{error.filename} can't be read ({error.strerror})."
        )


def _is_sound(file: Path) -> bool:
    """Whether it is called like audio, and is no device; what opening it tells is left to that."""
    known = file.suffix.lower() in SUFFIXES
    return known and (os.path.isfile(file) or not os.path.exists(file))


def _is_left_out(path: Path, places: Sequence[Path]) -> bool:
    real = Path(os.path.realpath(path))
    return path.name.startswith(".") or bool({*places} & {real, *real.parents})
