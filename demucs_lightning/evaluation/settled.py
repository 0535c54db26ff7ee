"""What the results in a folder are of: a model, a data set, a way to separate and to score."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from demucs_lightning.data.tracks import Track
from demucs_lightning.evaluation.estimates import Judged
from demucs_lightning.evaluation.results import (
    FORMAT,
    TRACKS,
    CorruptResult,
    read_settings,
    track_path,
    write_settings,
)
from demucs_lightning.evaluation.scoring import DEFINITIONS
from demucs_lightning.evaluation.tracks import TrackSet

log = logging.getLogger(__name__)

# Settings in which a folder may differ from what is scored now.
FREE = ("format", "versions", "data.tracks", "model.name")
LONGEST = 40  # characters of a value that is told


def settle(folder: Path, judged: Judged, data: TrackSet, sources: Sequence[str]) -> dict[str, Any]:
    """The settings of these results, written to the folder.

    Raises ValueError, saying what differs, where the folder has results of others. Those of tracks
    that are no longer in the data set are put aside.
    """
    settings = {
        "format": FORMAT,
        "model": judged.model,
        "data": {
            "set": data.name,
            "subset": data.subset,
            "tracks": len(data.tracks),
            "sources": list(sources),
        },
        "separation": judged.separation,
        "metrics": DEFINITIONS,
        "versions": {"demucs_lightning": _own_version(), "torch": torch.__version__},
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
    if settings != there:
        write_settings(folder, settings)
    _put_aside(folder, data.tracks)
    return settings


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
    more = f" and {len(differ) - 4} more" if len(differ) > 4 else ""
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


def _put_aside(folder: Path, tracks: Sequence[Track]) -> None:
    known = {track_path(folder, track.name) for track in tracks}
    for path in sorted((folder / TRACKS).glob("*.json")):
        if path not in known:
            log.warning("%s is of no track of this data set: it is put aside.", path)
            path.replace(path.with_suffix(".json.old"))


def _own_version() -> str | None:
    try:
        return version("demucs-lightning")
    except PackageNotFoundError:  # a checkout that was not installed
        return None
