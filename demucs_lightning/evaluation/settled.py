"""What the results in a folder are of: a model, a data set, a way to separate and to score."""

import hashlib
import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from demucs_lightning.evaluation.estimates import Judged
from demucs_lightning.evaluation.results import (
    FORMAT,
    SETTINGS,
    TRACKS,
    CorruptResult,
    read_settings,
    track_path,
    write_settings,
)
from demucs_lightning.evaluation.scoring import DEFINITIONS
from demucs_lightning.evaluation.tracks import TrackSet
from demucs_lightning.version import own_version

log = logging.getLogger(__name__)

# Settings in which a folder may differ from what is scored now.
FREE = ("format", "versions", "data.tracks", "data.root", "data.digest", "model.name")
LONGEST = 40  # characters of a value that is told


def settle(folder: Path, judged: Judged, data: TrackSet, sources: Sequence[str]) -> dict[str, Any]:
    """The settings of these results, written to the folder.

    Raises ValueError, saying what differs, where the folder has results of others, or of another
    place's tracks. Those of tracks that are no longer in the data set are put aside.
    """
    settings = {
        "format": FORMAT,
        "model": judged.model,
        "data": {
            "set": data.name,
            "subset": data.subset,
            "root": _root(data),
            "digest": data.digest,
            "tracks": len(data),
            "sources": list(sources),
        },
        "separation": judged.separation,
        "metrics": DEFINITIONS,
        "versions": {
            "demucs_lightning": own_version(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    try:
        there = read_settings(folder)
    except FileNotFoundError:
        there = None
    except CorruptResult as error:
        log.warning("%s It is written again.", error)
        there = None
    if there is not None:
        _check_same(folder, there, settings)
        if _is_elsewhere(there, data):
            raise ValueError(
                f"{folder} holds results of the tracks in {there['data'].get('root')}, and those "
                f"in {_root(data)} are others: name another folder (-o, or test.folder in the "
                "settings), or remove this one."
            )
    if settings != there:
        write_settings(folder, settings)
    _put_aside(folder, data)
    return settings


def usual_folder(base: Path, data: TrackSet, name: str) -> Path:
    """Where the results of the model ``name`` go unless the user says where: in a folder named by
    the data, and by its place where another place's tracks of that name have taken it."""
    plain = base / f"{data.name}-{data.subset}"
    for path in sorted(plain.glob(f"*/{SETTINGS}")):
        try:
            there = read_settings(path.parent)
        except (CorruptResult, FileNotFoundError):
            continue
        if _is_elsewhere(there, data):
            mark = hashlib.sha256(_root(data).encode(errors="surrogateescape")).hexdigest()[:6]
            return base / f"{data.name}-{mark}-{data.subset}" / name
    return plain / name


def _root(data: TrackSet) -> str:
    return str(data.root.resolve()) if data.root else ""


def _is_elsewhere(there: Mapping[str, Any], data: TrackSet) -> bool:
    """Whether results are of other tracks in another place. The same tracks may well be mounted,
    or copied, to different places."""
    before = there["data"]
    moved = before.get("root") not in (None, _root(data))
    return moved and before.get("digest") not in (None, data.digest)


def _check_same(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    free = FREE if here["model"]["hash"] else tuple(name for name in FREE if name != "model.name")
    before, now = dict(_leaves(there)), dict(_leaves(here))
    names = [name for name in {**now, **before} if not name.startswith(free)]
    differ = [name for name in names if before.get(name) != now.get(name)]
    if not differ:
        return
    told = [
        f"{name} {_short(before.get(name))} there, {_short(now.get(name))} here"
        for name in differ[:4]
    ]
    more = f"; and {len(differ) - 4} more" if len(differ) > 4 else ""
    raise ValueError(
        f"{folder} holds results of other settings ({'; '.join(told)}{more}): name another folder, "
        "or remove this one."
    )


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _put_aside(folder: Path, data: TrackSet) -> None:
    known = {track_path(folder, name) for name in data.names}
    for path in sorted((folder / TRACKS).glob("*.json")):
        if path not in known:
            aside = path.with_suffix(".json.old")
            log.warning("%s is of a track that %s lacks: now it is %s.", path, data.place, aside)
            path.replace(aside)
