"""What is scored: the tracks of a test set, with their references in the files' own form.

Nothing is converted: references are read at the rate and with the channels that they have.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from demucs_lightning.data import folder, musdb
from demucs_lightning.data.tracks import (
    MIXTURE,
    STEM_MP4,
    Faults,
    Track,
    find_tracks,
    index_tracks,
)

KINDS = ("musdb18hq", "musdb7s", "folder", "demo")
SUBSETS = ("test", "validation", "training", "training_all", "all")
ALL = "all"
# Data sets in files, as training names them, and what their files end in.
MUSDB: dict[str, tuple[type[musdb.MusdbHQ], str]] = {
    "musdb18hq": (musdb.MusdbHQ, ".wav"),
    "musdb7s": (musdb.Musdb7s, STEM_MP4),
}


@dataclass(frozen=True)
class TrackSet:
    """``name`` and ``subset`` of a data set, the sources that it has, and its tracks; ``faults``
    say why others can't be scored."""

    name: str
    subset: str
    sources: list[str]
    tracks: list[Track]
    faults: Mapping[str, Exception] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tracks) + len(self.faults)

    @property
    def names(self) -> list[str]:
        """Of all tracks, sorted."""
        return sorted([*(track.name for track in self.tracks), *self.faults])

    @property
    def root(self) -> Path | None:
        """The folder of the tracks, as it was given."""
        return self.tracks[0].folder if self.tracks else None

    @property
    def place(self) -> str:
        """What the user knows it by."""
        return str(self.root or self.name)

    @property
    def digest(self) -> str:
        """The same for the same tracks, wherever they lie."""
        facts = [[t.name, t.samplerate, t.frames, f"{t.std:.6e}"] for t in self.tracks]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def only(self, names: Collection[str]) -> "TrackSet":
        """With the tracks of these names."""
        return replace(
            self,
            tracks=[track for track in self.tracks if track.name in names],
            faults={name: error for name, error in self.faults.items() if name in names},
        )

    def chosen(self, patterns: Sequence[str]) -> "TrackSet":
        """With the tracks that one of ``patterns`` names, in full or with * and ?, in any case;
        ValueError for a pattern that names none."""
        kept: list[str] = []
        for pattern in patterns:
            found = [name for name in self.names if _matches(name, pattern)]
            if not found:
                names = ", ".join(map(repr, self.names[:3]))
                raise ValueError(
                    f"tracks has {pattern!r}, and no track is called that: "
                    f"{'the only track is' if len(self) == 1 else 'the tracks are'} {names}"
                    f"{', ...' if len(self) > 3 else ''}."
                )
            kept += found
        return self.only(kept)


def of_settings(dset: Any, subset: str) -> TrackSet:
    """The tracks of ``dset(subset=subset, segment=None)``, the data set in the settings of a run.

    Of this package's own, files are listed and not converted, and tracks that are no good are
    faults; any other is made, see `of_dataset`. Raises what `open_set` raises.
    """
    kind, given = getattr(dset, "func", None), getattr(dset, "keywords", {})
    faults: Faults = {}
    if kind is folder.FolderTracks:
        root, sources = Path(given["root"]), list(given["sources"])
        tracks = folder.listed(root, subset, sources, given.get("valid"), faults=faults)
        return TrackSet(root.resolve().name, subset, sources, tracks, faults)
    for klass, suffix in MUSDB.values():
        if kind is klass:
            root, sources = Path(given["root"]), list(given.get("sources", musdb.SOURCES))
            return _musdb(
                klass,
                root,
                subset=subset,
                sources=sources,
                suffix=given.get("ext", suffix),
                download=given.get("download", False),
            )
    return of_dataset(dset(subset=subset, segment=None), subset)


def downloaded(dset: Any) -> Any:
    """The same data set of the settings, but fetched already."""
    given = getattr(dset, "keywords", {})
    if "download" not in given:
        return dset
    return partial(dset.func, *dset.args, **{**given, "download": False})


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
    klass, suffix = MUSDB[kind]
    return _musdb(
        klass, root, subset=subset, sources=musdb.SOURCES, suffix=suffix, download=download
    )


def _musdb(  # noqa: PLR0913
    klass: type[musdb.MusdbHQ],
    root: Path,
    *,
    subset: str,
    sources: Sequence[str],
    suffix: str,
    download: bool,
) -> TrackSet:
    if subset not in musdb.SUBSETS:
        raise ValueError(
            f"subset is {subset}: {klass.archive.title} has test, validation, training and "
            "training_all."
        )
    if download:
        musdb.ensure(klass.archive, root)
    faults: Faults = {}
    tracks = musdb.listed(klass.archive, root, subset, sources, suffix, faults=faults)
    return TrackSet(klass.__name__, subset, list(sources), tracks, faults)


def _folder(root: Path, subset: str | None) -> TrackSet:
    found = {name: files for name, files in find_tracks(root).items() if files}
    stems = sorted({stem for files in found.values() for stem in files} - {MIXTURE})
    known = [name for name in musdb.SOURCES if name in stems]
    sources = known + [name for name in stems if name not in known]
    if found and not sources:
        raise ValueError(f"No track in {root} has stems: each needs files <track>/<source>.wav.")
    faults: Faults = {}
    test = {name: files for name, files in found.items() if name.startswith("test/")}
    subset = subset or ("test" if test else ALL)
    chosen = test if subset == "test" else found if subset == ALL else {}
    if chosen:
        chosen = folder.with_stems(chosen, sources, root, faults=faults)
        tracks = index_tracks(root, chosen, sources, faults=faults)
    else:  # as in training, which also says what was looked for where there is nothing
        wanted = "test" if subset == ALL else subset
        tracks = folder.listed(root, wanted, sources, None, faults=faults)
    return TrackSet(root.resolve().name, subset, sources, tracks, faults)


def _demo(root: Path, subset: str) -> TrackSet:
    from demucs_lightning.data.demo import DemoSongs  # what makes music takes seconds to load

    dataset = DemoSongs(root, subset)
    return TrackSet(DemoSongs.__name__, subset, list(dataset.sources), dataset.tracks)


def _matches(name: str, pattern: str) -> bool:
    names = (name.lower(), name.lower().rpartition("/")[2])
    return any(fnmatchcase(each, pattern.lower()) or each == pattern.lower() for each in names)
