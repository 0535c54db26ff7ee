"""Any folder of tracks with any sources, as extracts.

Below `root`, at any depth, a track is a folder `<track>/` of `<source>.wav`, .flac, .ogg, .mp3 or
.m4a, or one `<track>.stem.mp4` (mixture, drums, bass, other, vocals). A track may lack stems, which
are silent then, but not all; a `mixture` file is used where there is one. A track's name is its
path below `root`, `train/Some Song`.
"""

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from demucs_lightning.data.extracts import Extracts
from demucs_lightning.data.tracks import (
    STEM_MP4,
    SUFFIXES,
    Faults,
    Files,
    Track,
    find_tracks,
    index_tracks,
    require_stems,
)

log = logging.getLogger(__name__)

SUBSETS = ("training", "training_all", "validation", "test")
FRACTION = 0.1  # of the tracks are for validation where nothing says which

Valid = str | float | Sequence[str]


class FolderTracks(Extracts):
    """The tracks of a subset of the folder `root`; items and other arguments as for `Extracts`.

    `valid` says which tracks validate: a folder in `root`, a list of track names, or a fraction
    between 0 and 1, drawn by a hash of the names. By default it is the folder `valid` if there is
    one, else a tenth. Training takes `train/` if there is one, else all that is not in `test/`,
    without the tracks that validate; training_all takes those too. Test takes `test/`, or what
    validates if there is none.

    Raises FileNotFoundError if there are no tracks, ValueError for an unknown subset, name or
    source, or a track without any of `sources`.
    """

    def __init__(  # noqa: PLR0913
        self,
        root: str | Path,
        subset: str,
        sources: Sequence[str],
        *,
        valid: Valid | None = None,
        segment: float | None = None,
        shift: float | None = None,
        normalize: bool = True,
        samplerate: int = 44100,
        channels: int = 2,
    ) -> None:
        super().__init__(
            listed(Path(root), subset, sources, valid),
            sources,
            segment=segment,
            shift=shift,
            normalize=normalize,
            samplerate=samplerate,
            channels=channels,
        )


def listed(
    root: Path,
    subset: str,
    sources: Sequence[str],
    valid: Valid | None,
    *,
    faults: Faults | None = None,
) -> list[Track]:
    """The tracks of a subset; ``faults`` as for `index_tracks`."""
    if subset not in SUBSETS:
        raise ValueError(f"subset={subset!r} is unknown: it is one of {', '.join(SUBSETS)}.")
    found = {name: files for name, files in find_tracks(root).items() if files}
    if not found:
        raise FileNotFoundError(
            f"No tracks in {root}: folders with one audio file a stem ({', '.join(SUFFIXES)}) or "
            f"files <track>{STEM_MP4} were looked for."
        )
    require_stems(found, sources, folder=root)
    names = split(found, subset, valid, root=root)
    chosen = {name: files for name, files in found.items() if name in names}
    chosen = with_stems(chosen, sources, root, faults=faults)
    return index_tracks(root, chosen, sources, faults=faults)


def split(
    names: Collection[str], subset: str, valid: Valid | None = None, *, root: Path
) -> set[str]:
    """Those of `names` that belong to a subset, never none; see `FolderTracks`."""
    test = _inside(names, "test")
    pool = _inside(names, "train") or set(names) - test
    if valid is None:
        valid = "valid" if _inside(names, "valid") else FRACTION
    if isinstance(valid, str):
        validation = _inside(names, valid)
        wanted = f"tracks in {root / valid}"
    elif isinstance(valid, int | float):
        validation = _fraction(pool, valid)
        wanted = "two tracks or more"
    else:
        validation = {_named(name, pool, root) for name in valid}
        wanted = "the names of tracks"
    if not validation:
        raise ValueError(f"valid={valid!r} needs {wanted}: there are none to validate on.")
    if subset == "test" and not test:
        log.warning("No test tracks in %s: those to validate on serve for it", root)
    subsets = {
        "training": pool - validation,
        "training_all": pool | validation,
        "validation": validation,
        "test": test or validation,
    }
    if not subsets[subset]:
        raise ValueError(f"valid={valid!r} takes all tracks in {root}: there are none to train on.")
    return subsets[subset]


def _inside(names: Collection[str], folder: str) -> set[str]:
    return {name for name in names if name.startswith(f"{folder.rstrip('/')}/")}


def _named(name: str, pool: Collection[str], root: Path) -> str:
    for candidate in (name, f"train/{name}"):
        if candidate in pool:
            return candidate
    raise ValueError(f"valid names {name!r}, but there is no such track in {root}.")


def _fraction(pool: Collection[str], fraction: float) -> set[str]:
    """That share of the names, at least one and never all, whatever their order."""
    if not 0 < fraction < 1:
        raise ValueError(f"valid={fraction} is no fraction: it must lie between 0 and 1.")
    drawn = sorted(pool, key=lambda name: hashlib.sha256(name.encode()).digest())
    return set(drawn[: min(max(round(fraction * len(drawn)), 1), len(drawn) - 1)])


def with_stems(
    found: Mapping[str, Files], sources: Sequence[str], root: Path, *, faults: Faults | None = None
) -> dict[str, Files]:
    """The tracks that have one of `sources` at least. ValueError for another, which goes to
    ``faults`` where there are such."""
    kept = {name: files for name, files in found.items() if set(sources) & set(files)}
    for name in found.keys() - kept.keys():
        error = ValueError(
            f"{root / name} has none of the stems {', '.join(sources)}: it holds "
            f"{', '.join(sorted(found[name]))}."
        )
        if faults is None:
            raise error
        faults[name] = error
    return kept
