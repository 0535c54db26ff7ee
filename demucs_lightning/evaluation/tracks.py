"""What is scored: the tracks of a test set, with their references in the files' own form.

Nothing is converted: references are read at the rate and with the channels that they have.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from demucs_lightning.data import folder, musdb
from demucs_lightning.data.tracks import (
    MIXTURE,
    STEM_MP4,
    Track,
    find_tracks,
    index_tracks,
)

KINDS = ("musdb18hq", "musdb7s", "folder", "demo")
SUBSETS = ("test", "validation", "training", "training_all", "all")
ALL = "all"


@dataclass(frozen=True)
class TrackSet:
    """``name`` and ``subset`` of a data set, the sources that it has, and its tracks."""

    name: str
    subset: str
    sources: list[str]
    tracks: list[Track]

    def chosen(self, patterns: Sequence[str]) -> "TrackSet":
        """With the tracks that one of ``patterns`` names, in full or with * and ?, in any case;
        ValueError for a pattern that names none."""
        kept = []
        for pattern in patterns:
            found = [track for track in self.tracks if _matches(track.name, pattern)]
            if not found:
                names = ", ".join(repr(track.name) for track in self.tracks[:3])
                raise ValueError(
                    f"tracks has {pattern!r}, and no track is called that: the tracks are {names}"
                    f"{', ...' if len(self.tracks) > 3 else ''}."
                )
            kept += [track.name for track in found]
        return replace(self, tracks=[track for track in self.tracks if track.name in kept])


def of_dataset(dataset: Any, subset: str) -> TrackSet:
    """The tracks of a data set as training uses it; ValueError if it is none of this package's."""
    tracks = getattr(dataset, "tracks", None)
    if not tracks or not all(isinstance(track, Track) for track in tracks):
        raise ValueError(
            f"{type(dataset).__name__} has no tracks that lie in files: a data set of "
            "demucs_lightning.data is needed to score them."
        )
    return TrackSet(type(dataset).__name__, subset, list(dataset.sources), list(tracks))


def guessed(root: Path) -> str:
    """Which of KINDS lies in a folder, by what is in it."""
    if (root / "demo_songs.json").is_file():
        return "demo"
    for home in (root, root / "musdb18hq", root / "MUSDB18-7-STEMS"):
        if (home / "test").is_dir() and (home / "train").is_dir():
            found = find_tracks(home / "test")
            if found and all({MIXTURE, *musdb.SOURCES} <= set(files) for files in found.values()):
                bundled = any((home / "test").glob(f"*{STEM_MP4}"))
                return "musdb7s" if bundled else "musdb18hq"
    return "folder"


def open_set(kind: str, root: Path, *, subset: str | None, download: bool = False) -> TrackSet:
    """The tracks of ``subset`` of a data set of one of KINDS that lies in ``root``.

    None is ``test``, or all tracks where a folder has none for that. Raises FileNotFoundError where
    there are no tracks, ValueError for an unknown kind or subset and for stems that don't fit
    together, and what a download raises.
    """
    for name, value, known in (("dset", kind, KINDS), ("subset", subset or "test", SUBSETS)):
        if value not in known:
            raise ValueError(f"{name} is {value!r}: it must be one of {', '.join(known)}.")
    if kind == "folder":
        return _folder(root, subset)
    subset = subset or "test"
    if kind == "demo":
        return _demo(root, subset)
    if subset == ALL:
        raise ValueError(f"subset is all: {kind} has test, validation, training and training_all.")
    archive, suffix, klass = (
        (musdb.MUSDB18_7S, STEM_MP4, musdb.Musdb7s)
        if kind == "musdb7s"
        else (musdb.MUSDB18_HQ, ".wav", musdb.MusdbHQ)
    )
    if download:
        musdb.ensure(archive, root)
    tracks = musdb.listed(archive, root, subset, musdb.SOURCES, suffix)
    return TrackSet(klass.__name__, subset, list(musdb.SOURCES), tracks)


def _folder(root: Path, subset: str | None) -> TrackSet:
    found = {name: files for name, files in find_tracks(root).items() if files}
    stems = sorted({stem for files in found.values() for stem in files} - {MIXTURE})
    known = [name for name in musdb.SOURCES if name in stems]
    sources = known + [name for name in stems if name not in known]
    if found and not sources:
        raise ValueError(f"No track in {root} has stems: each needs files <track>/<source>.wav.")
    test = {name: files for name, files in found.items() if name.startswith("test/")}
    subset = subset or ("test" if test else ALL)
    chosen = test if subset == "test" else found if subset == ALL else {}
    if chosen:
        tracks = index_tracks(root, chosen, sources)
    else:  # as in training, which also says what was looked for where there is nothing
        tracks = folder.listed(root, "test" if subset == ALL else subset, sources, None)
    return TrackSet(folder.FolderTracks.__name__, subset, sources, tracks)


def _demo(root: Path, subset: str) -> TrackSet:
    from demucs_lightning.data.demo import DemoSongs  # what makes music takes seconds to load

    dataset = DemoSongs(root, subset)
    return TrackSet(DemoSongs.__name__, subset, list(dataset.sources), dataset.tracks)


def _matches(name: str, pattern: str) -> bool:
    names = (name.lower(), name.lower().rpartition("/")[2])
    return any(fnmatchcase(each, pattern.lower()) or each == pattern.lower() for each in names)
