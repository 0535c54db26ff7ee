"""What the results of an evaluation amount to: per source and overall, as a table and as JSON."""

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from demucs_lightning.evaluation.results import METRICS, Results, plain
from demucs_lightning.evaluation.scoring import FULL, MAIN, NAMES
from demucs_lightning.evaluation.unscored import count, joined, listed, unscored
from demucs_lightning.scores import mean, median

OVERALL = "overall"
WIDTH = 100  # of lines
HASH = 12  # hex digits of a hash that tell one model from another
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
    return {name: number for name, number in counts.items() if number}


def weights(results: Results) -> str | None:
    """The model's hash, short; None of a folder of stems."""
    digest = results.settings["model"].get("hash")
    return str(digest)[:HASH] if digest else None


def shown(value: float, form: str = ".2f") -> str:
    """A number of a table; a dash where there is none."""
    return "-" if math.isnan(value) else format(value, form)


def table(results: Results) -> str:
    """nSDR and SDR per source and overall, and what these are."""
    columns = [*results.sources, OVERALL]
    widths = [max(9, len(name) + 2) for name in columns]
    title = f"{'dB':<14}"
    lines = [title + "".join(f"{name:>{w}}" for name, w in zip(columns, widths, strict=True))]
    for metric in MAIN:
        lines.append(FULL[metric])
        for kind in KINDS:
            values = aggregate(results, metric, kind)
            cells = (f"{shown(values[c]):>{w}}" for c, w in zip(columns, widths, strict=True))
            lines.append(f"{f'{NAMES[metric]} {kind}':<{len(title)}}{''.join(cells)}")
    lines.append("")
    for note in notes(results):
        lines += textwrap.wrap(note, WIDTH, subsequent_indent="  ")
    return "\n".join(lines)


def notes(results: Results) -> list[str]:
    """What the numbers of a table are, in full."""
    data, separation = results.settings["data"], results.settings["separation"]
    scored, of = len(results.tracks), data["tracks"]
    tracks = count(of, "track") if scored == of else f"{scored} of {count(of, 'track')}"
    digest = weights(results)
    facts = [
        results.name,
        digest and f"weights {digest}",
        f"{data['set']} {data['subset']}, {tracks}",
    ]
    lines = [" · ".join(filter(None, facts))]
    if separation:
        told = [f"{key} {'own' if v is None else v}" for key, v in separation.items()]
        lines.append(f"separated with {', '.join(told)}")
    definitions = results.settings["metrics"]
    lines += [
        f"{NAMES[metric]}: {definitions[metric].rstrip('.')}."
        for metric in MAIN
        if metric in definitions
    ]
    lines.append(
        "median, mean: over the tracks that have a score; overall: the mean over the sources."
    )
    return lines + left_out(results, MAIN)


def left_out(results: Results, metrics: Iterable[str]) -> list[str]:
    """Sentences on the tracks without a score: of which metrics, how many, and why."""
    alike: dict[str, list[str]] = {}
    for metric in metrics:
        if counts := unscored(results, metric):
            alike.setdefault(listed(counts), []).append(NAMES[metric])
    return [
        f"Without {joined(names)}, and left out of median and mean: {told}."
        for told, names in alike.items()
    ]


def as_json(results: Results) -> dict[str, Any]:
    """The same with all metrics, for programs; NaN is None, infinities are text. ``unscored``
    counts the tracks without a score by metric and source, ``reasons`` says why these have none."""
    reasons = {metric: unscored(results, metric) for metric in METRICS}
    return {
        **results.settings,
        "folder": str(results.folder),
        "tracks": len(results.tracks),
        "silent": silent(results),
        "unscored": {
            metric: {source: sum(why.values()) for source, why in found.items()}
            for metric, found in reasons.items()
        },
        "reasons": reasons,
        **{
            kind: {
                metric: {
                    name: plain(value) for name, value in aggregate(results, metric, kind).items()
                }
                for metric in METRICS
            }
            for kind in KINDS
        },
    }


def line(result: Any, sources: Sequence[str]) -> str:
    """A track's scores, its mean over the sources first."""
    told = []
    for metric in MAIN:
        value = mean(result.score(source, metric) for source in sources)
        told.append(f"{NAMES[metric]} {shown(value)} dB")
    speed = result.seconds / max(result.elapsed, 1e-9)
    return f"{result.track}: {', '.join(told)}; {speed:.1f} x real time"
