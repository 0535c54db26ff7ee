"""Scores of separated tracks: gathered from all processes, averaged, and as a table to read."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, distributed

from demucs_lightning.metrics import new_sdr


@dataclass(frozen=True)
class Score:
    """Loss and nSDR in dB per source of one track; nSDR is NaN where the track lacks the source."""

    track: str
    candidate: str
    loss: float
    nsdr: Mapping[str, float]


def score_sources(
    batch: Mapping[str, Any], estimates: Tensor, sources: Sequence[str]
) -> dict[str, float]:
    """nSDR of each source of one track, NaN for a silent one.

    ``batch`` has ``stems`` (1, S, C, T), like ``estimates``, ``silent`` (S,) and ``track``, one
    name. Raises ValueError naming the track if an estimate is not finite.
    """
    if not estimates.isfinite().all():
        raise ValueError(f"The model's output for track {batch['track'][0]!r} is not finite.")
    values = new_sdr(batch["stems"], estimates)[0].masked_fill(batch["silent"], math.nan)
    return dict(zip(sources, values.tolist(), strict=True))


def gathered(scores: list[Score]) -> list[Score]:
    """The scores of all processes, in every one of them; each process must call it."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return scores
    parts: list[list[Score]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(parts, scores)
    return sorted((score for part in parts for score in part), key=lambda score: score.track)


def averages(scores: Sequence[Score]) -> dict[str, float]:
    """``loss``, ``nsdr_<source>`` over the tracks, and ``nsdr``, their mean over the sources."""
    means = {"loss": mean(score.loss for score in scores)}
    by_source = {f"nsdr_{name}": mean(row.nsdr[name] for row in scores) for name in scores[0].nsdr}
    return {**means, **by_source, "nsdr": mean(by_source.values())}


def by_candidate(scores: Sequence[Score]) -> dict[str, dict[str, float]]:
    """The averages of each candidate, in the order of their first scores."""
    names = dict.fromkeys(score.candidate for score in scores)
    return {
        name: averages([score for score in scores if score.candidate == name]) for name in names
    }


def aim(sources: Sequence[str], weights: Sequence[float]) -> str:
    """The average that a model with these weights of its loss is to be best in: ``nsdr``, or
    ``nsdr_<source>`` of a specialist, for which all other sources weigh nothing. One weight is for
    all sources.
    """
    weights = weights if len(weights) > 1 else [*weights] * len(sources)
    wanted = [source for source, weight in zip(sources, weights, strict=True) if weight != 0]
    return f"nsdr_{wanted[0]}" if len(wanted) == 1 < len(sources) else "nsdr"


def table(scores: Sequence[Score]) -> str:
    """nSDR of every track, then median and mean over the tracks, one column per source."""
    names = list(scores[0].nsdr)
    rows = [(score.track, [score.nsdr[name] for name in names]) for score in scores]
    columns = list(zip(*(values for _, values in rows), strict=True))
    rows += [
        (label, [kind(column) for column in columns])
        for label, kind in (("median", median), ("mean", mean))
    ]
    width = max(len(label) for label, _ in rows)
    lines = [f"{'nSDR (dB)':<{width}}" + "".join(f"{name:>10}" for name in (*names, "mean"))]
    for label, values in rows:
        lines.append(
            f"{label:<{width}}" + "".join(f"{value:>10.2f}" for value in (*values, mean(values)))
        )
    return "\n".join(lines)


def _present(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def mean(values: Iterable[float]) -> float:
    """Without the NaN; NaN where nothing is left."""
    kept = _present(values)
    return sum(kept) / len(kept) if kept else math.nan


def median(values: Iterable[float]) -> float:
    """Without the NaN; NaN where nothing is left."""
    return statistics.median(_present(values) or [math.nan])
