"""The results of an evaluation as files: settings, one JSON a track, and short excerpts to hear.

    FOLDER/settings.json          model, data, separation, metrics in full, versions
    FOLDER/tracks/<id>.json       scores of a track, one value a window of a second where there are
                                  windows; `<id>` is `track_id` of the track's name
    FOLDER/excerpts/<id>/         mixture.flac, <source>.reference.flac, <source>.estimate.flac

A file has its name only when it is complete, so a reader never meets half of one. In the files NaN
is null, and infinities are the strings "inf" and "-inf".
"""

import hashlib
import json
import math
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from demucs_lightning.scores import median

FORMAT = 1
SETTINGS, TRACKS, EXCERPTS = "settings.json", "tracks", "excerpts"
WHOLE = ("nsdr", "si_sdr")  # metrics of a track as a whole
WINDOWED = ("sdr", "isr", "sir", "sar")
METRICS = (*WHOLE, *WINDOWED)
NAME_BYTES = 120  # of a track's name in the name of its files


class CorruptResult(ValueError):
    """A file of a results folder that is damaged, or not of this format."""


@dataclass(frozen=True)
class SourceScores:
    """dB, NaN where a score is not defined; the last four have one value a window of a second."""

    silent: bool
    nsdr: float
    si_sdr: float
    sdr: list[float]
    isr: list[float]
    sir: list[float]
    sar: list[float]

    def score(self, metric: str) -> float:
        """Of the track: a windowed metric's median over the windows that have a value."""
        if metric not in METRICS:
            raise ValueError(f"metric is {metric!r}: it must be one of {', '.join(METRICS)}.")
        value = getattr(self, metric)
        return value if metric in WHOLE else median(value)


@dataclass(frozen=True)
class Excerpt:
    """A part of a track, in seconds."""

    start: float
    seconds: float


@dataclass(frozen=True)
class TrackResult:
    """Scores by source; ``seconds`` of audio at ``samplerate`` Hz, ``elapsed`` seconds of work.

    ``key`` stands for all that the scores depend on: model, settings, metrics, and the track.
    ``content`` does so by what is in the files, not by their times. ``machine`` says what has
    computed them: device, threads and batch size.
    """

    key: str
    track: str
    samplerate: int
    seconds: float
    elapsed: float
    sources: dict[str, SourceScores]
    excerpt: Excerpt | None = None
    machine: dict[str, Any] | None = None
    content: str | None = None

    def score(self, source: str, metric: str) -> float:
        """dB; a windowed metric's median over the windows that have a value. A lone source has no
        SIR: there is none to interfere, and BSS Eval's infinity is no score."""
        if metric == "sir" and len(self.sources) == 1:
            return math.nan
        return self.sources[source].score(metric)


@dataclass(frozen=True)
class Results:
    """All that a folder holds; ``tracks`` are in the order of their names."""

    folder: Path
    settings: dict[str, Any]
    tracks: list[TrackResult]

    @property
    def name(self) -> str:
        """That of the model, or of the folder of stems."""
        return self.settings["model"]["name"]

    @property
    def sources(self) -> list[str]:
        """Those that were scored, in the order of the first track."""
        return list(dict.fromkeys(name for track in self.tracks for name in track.sources))

    def column(self, source: str, metric: str) -> dict[str, float]:
        """The score of each track that has the source, by the track's name."""
        return {
            track.track: track.score(source, metric)
            for track in self.tracks
            if source in track.sources
        }


def track_id(track: str) -> str:
    """The name of a track's files: its own where that serves, else one of its own like it."""
    plain = re.sub(r"[^\w .,&+'()-]", "_", track).strip(" .")
    short = plain.encode()[:NAME_BYTES].decode(errors="ignore").strip(" .")
    if short == track and short:
        return track
    return (
        f"{short or '_'}-{hashlib.sha256(track.encode(errors='surrogateescape')).hexdigest()[:8]}"
    )


def track_path(folder: Path, track: str) -> Path:
    return folder / TRACKS / f"{track_id(track)}.json"


def excerpt_folder(folder: Path, track: str) -> Path:
    return folder / EXCERPTS / track_id(track)


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write ``settings.json`` at once, or not at all."""
    _write(folder / SETTINGS, {"format": FORMAT, **settings})


def read_settings(folder: Path) -> dict[str, Any]:
    """Raises FileNotFoundError where there are no results, ValueError for a damaged file."""
    path = Path(folder) / SETTINGS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no results of an evaluation: no {SETTINGS} in it.")
    settings = _read(path)
    if not all(isinstance(settings.get(key), dict) for key in ("model", "data", "metrics")):
        raise CorruptResult(f"{path} is damaged: it has no model, data and metrics.")
    return settings


def write_track(folder: Path, result: TrackResult) -> Path:
    """Write a track's file at once, or not at all."""
    path = track_path(folder, result.track)
    content = asdict(result)
    for name, scores in result.sources.items():
        content["sources"][name] = {
            key: [plain(one) for one in value] if isinstance(value, list) else plain(value)
            for key, value in asdict(scores).items()
        }
    _write(path, {"format": FORMAT, **content})
    return path


def read_track(path: Path) -> TrackResult:
    """Raises CorruptResult where the file isn't what `write_track` writes."""
    content = _read(path)
    try:
        result = TrackResult(
            key=str(content["key"]),
            track=str(content["track"]),
            samplerate=int(content["samplerate"]),
            seconds=float(content["seconds"]),
            elapsed=float(content["elapsed"]),
            sources={name: _scores(row) for name, row in content["sources"].items()},
            excerpt=Excerpt(**content["excerpt"]) if content.get("excerpt") else None,
            machine=content.get("machine"),
            content=content.get("content"),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptResult(f"{path} is damaged: {type(error).__name__} at {error}.") from error
    if path.stem != track_id(result.track):
        raise CorruptResult(f"{path} is damaged: it says that it is of the track {result.track}.")
    return result


def read_results(folder: str | Path) -> Results:
    """The results in a folder.

    Raises FileNotFoundError where there are none, and CorruptResult, a ValueError, that names a
    damaged file.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    paths = sorted((folder / TRACKS).glob("*.json"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no scored track: {TRACKS}/ has no .json in it.")
    tracks = sorted(map(read_track, paths), key=lambda track: track.track)
    return Results(folder, settings, tracks)


def write_text(path: Path, text: str) -> None:
    """Write a file at once, or not at all, whoever else writes it at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, allow_nan=False, indent=1) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CorruptResult(f"{path} is damaged: it is no JSON ({error}).") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CorruptResult(f"{path} is not of format {FORMAT}, which is what is read here.")
    return content


def _scores(row: Mapping[str, Any]) -> SourceScores:
    windows = {name: [_number(value) for value in row[name]] for name in WINDOWED}
    if len({len(values) for values in windows.values()}) != 1:
        raise ValueError("windows: not the same number of every metric")
    return SourceScores(
        silent=bool(row["silent"]),
        nsdr=_number(row["nsdr"]),
        si_sdr=_number(row["si_sdr"]),
        **windows,
    )


def plain(value: float | bool) -> float | bool | str | None:
    """A number as JSON has it: NaN is None, infinities are text."""
    if isinstance(value, bool) or math.isfinite(value):
        return value
    return None if math.isnan(value) else str(float(value))


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or (isinstance(value, str) and value not in ("inf", "-inf")):
        raise ValueError(f"{value!r}: no number")
    return float(value)
