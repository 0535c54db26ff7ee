"""What the results of an evaluation amount to: per source and overall, as a table and as JSON."""

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from demucs_lightning.evaluation.results import METRICS, Results
from demucs_lightning.evaluation.scoring import DEFINITIONS
from demucs_lightning.scores import mean, median

SHOWN = {"nsdr": "nSDR", "sdr": "SDR"}
OVERALL = "overall"
WIDTH = 100  # of lines
KINDS: dict[str, Callable[[Iterable[float]], float]] = {"median": median, "mean": mean}


def aggregate(results: Results, metric: str, kind: str) -> dict[str, float]:
    """The median or mean (``kind``) over the tracks of each source, in dB, without those that have
    no score; and ``overall``, the mean of these over the sources."""
    sources = results.sources
    values = {name: KINDS[kind](results.column(name, metric).values()) for name in sources}
    return {**values, OVERALL: mean(values.values())}


def silent(results: Results) -> dict[str, int]:
    """How many tracks have a silent reference, by source, where there are any."""
    counts = {
        name: sum(name in track.sources and track.sources[name].silent for track in results.tracks)
        for name in results.sources
    }
    return {name: count for name, count in counts.items() if count}


def unscored(results: Results, metric: str) -> dict[str, int]:
    """How many tracks have no score, by source, where there are any."""
    columns = {name: results.column(name, metric).values() for name in results.sources}
    counts = {name: sum(map(math.isnan, values)) for name, values in columns.items()}
    return {name: count for name, count in counts.items() if count}


def table(results: Results) -> str:
    """nSDR and SDR per source and overall, and what these are."""
    columns = [*results.sources, OVERALL]
    widths = [max(9, len(name) + 2) for name in columns]
    title = f"{'dB':<14}"
    lines = [title + "".join(f"{name:>{w}}" for name, w in zip(columns, widths, strict=True))]
    for metric, name in SHOWN.items():
        for kind in KINDS:
            values = aggregate(results, metric, kind)
            shown = "".join(f"{values[c]:>{w}.2f}" for c, w in zip(columns, widths, strict=True))
            lines.append(f"{f'{name} {kind}':<{len(title)}}{shown}")
    lines.append("")
    for note in notes(results):
        lines += textwrap.wrap(note, WIDTH, subsequent_indent="  ")
    return "\n".join(lines)


def notes(results: Results) -> list[str]:
    """What the numbers of a table are, in full."""
    data, separation = results.settings["data"], results.settings["separation"]
    count, of = len(results.tracks), data["tracks"]
    tracks = f"{count} tracks" if count == of else f"{count} of {of} tracks"
    lines = [f"{results.name} · {data['set']} {data['subset']}, {tracks}"]
    if separation:
        shown = [f"{key} {'own' if v is None else v}" for key, v in separation.items()]
        lines.append(f"separated with {', '.join(shown)}")
    lines += [f"{name}: {DEFINITIONS[metric]}." for metric, name in SHOWN.items()]
    lines.append(
        "median, mean: over the tracks that have a score; overall: the mean over the sources."
    )
    if quiet := silent(results):
        listed = ", ".join(f"{name} in {count}" for name, count in quiet.items())
        lines.append(f"Silent references, in tracks: {listed}.")
    for metric, name in SHOWN.items():
        if lacking := unscored(results, metric):
            listed = ", ".join(f"{source} in {number}" for source, number in lacking.items())
            lines.append(f"Without {name}, in tracks, and left out of its numbers: {listed}.")
    return lines


def as_json(results: Results) -> dict[str, Any]:
    """The same with all metrics, for programs; NaN is None, infinities are text."""
    return {
        **results.settings,
        "folder": str(results.folder),
        "tracks": len(results.tracks),
        "silent": silent(results),
        "unscored": {metric: unscored(results, metric) for metric in METRICS},
        **{
            kind: {metric: _plain(aggregate(results, metric, kind)) for metric in METRICS}
            for kind in KINDS
        },
    }


def line(result: Any, sources: Sequence[str]) -> str:
    """A track's scores, its mean over the sources first."""
    shown = []
    for metric, name in SHOWN.items():
        values = [result.score(source, metric) for source in sources]
        shown.append(f"{name} {mean(values):.2f} dB")
    speed = result.seconds / max(result.elapsed, 1e-9)
    return f"{result.track}: {', '.join(shown)}; {speed:.1f} x real time"


def _plain(values: dict[str, float]) -> dict[str, float | str | None]:
    return {
        name: value if math.isfinite(value) else None if math.isnan(value) else str(value)
        for name, value in values.items()
    }
