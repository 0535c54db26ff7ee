"""Models side by side: their scores on the same tracks, and how far the others are from the first.

Only tracks and sources that all results have are compared, and what is left out is said. A
difference is taken within each track, which takes away that some tracks are harder than others; its
mean comes with a confidence interval over the tracks (see `bootstrap`).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from demucs_lightning.evaluation.bootstrap import LEVEL, RESAMPLES, SEED, interval
from demucs_lightning.evaluation.results import METRICS, Results, TrackResult, plain
from demucs_lightning.evaluation.scoring import MAIN
from demucs_lightning.evaluation.table import KINDS, OVERALL
from demucs_lightning.evaluation.unscored import joined, unscored
from demucs_lightning.scores import mean

SAME_LENGTH = 0.1  # seconds, up to which two tracks of one name are the same recording


@dataclass(frozen=True)
class Difference:
    """Another model less the first, in dB: the mean, positive where the other is better, and its
    interval from ``low`` to ``high``, NaN where there is just one track.

    ``improved`` of ``tracks`` are better than the first's; ``left_out`` are those that lack one of
    the scores. Of ``infinite`` tracks just one score is infinite, and so is the difference: they
    count as better or worse, but are in the mean and the interval only if there are no others.
    """

    mean: float
    low: float
    high: float
    tracks: int
    improved: int
    left_out: int
    infinite: int

    @property
    def decided(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """``values[metric][source]`` has one row a model with the scores of ``tracks``, in dB, and so
    has the source ``overall``, the mean over the sources that have a score in all models."""

    results: list[Results]
    metrics: list[str]
    sources: list[str]
    tracks: list[str]
    notes: list[str]
    values: dict[str, dict[str, list[list[float]]]]
    seed: int = SEED

    @property
    def columns(self) -> list[str]:
        return [*self.sources, OVERALL]

    def level(self, metric: str, source: str, kind: str) -> list[float]:
        """The ``median`` or ``mean`` of each model over the tracks that have a score in all of
        them; ``overall`` is the mean of these over the sources."""
        if source == OVERALL:
            rows = [self.level(metric, name, kind) for name in self.sources]
            return [mean(values) for values in zip(*rows, strict=True)]
        tracks = zip(*self.values[metric][source], strict=True)
        kept = [scores for scores in tracks if not any(map(math.isnan, scores))]
        models = zip(*kept, strict=True) if kept else [[]] * len(self.results)
        return [KINDS[kind](values) for values in models]

    def unscored(self, metric: str) -> list[dict[str, dict[str, int]]]:
        """Of each model how many of the tracks have no score, by source and reason."""
        tracks = set(self.tracks)
        found = []
        for each in self.results:
            kept = [track for track in each.tracks if track.track in tracks]
            counts = unscored(replace(each, tracks=kept), metric)
            found.append({name: counts[name] for name in self.sources if name in counts})
        return found

    def differences(self, metric: str, source: str, model: int) -> list[float]:
        """Of each track, that of ``model`` less that of the first, 0 where both are infinite alike;
        NaN where there is none. Overall it is the mean of the differences of the sources."""
        if source == OVERALL:
            rows = [self.differences(metric, name, model) for name in self.sources]
            return [mean(values) for values in zip(*rows, strict=True)]
        first, other = (self.values[metric][source][index] for index in (0, model))
        return [0.0 if a == b else b - a for a, b in zip(first, other, strict=True)]

    def difference(self, metric: str, source: str, model: int) -> Difference:
        """Of ``model`` (1 for the second) to the first."""
        found = self.differences(metric, source, model)
        kept = [value for value in found if not math.isnan(value)]
        finite = [value for value in kept if math.isfinite(value)]
        low, high = interval(torch.tensor(finite, dtype=torch.float64), seed=self.seed)
        return Difference(
            mean=mean(finite or kept),
            low=low,
            high=high,
            tracks=len(kept),
            improved=sum(value > 0 for value in kept),
            left_out=len(found) - len(kept),
            infinite=len(kept) - len(finite),
        )


def compare(
    *results: Results,
    metrics: Sequence[str] = MAIN,
    sources: Sequence[str] | None = None,
    seed: int = SEED,
) -> Comparison:
    """The results of two or more evaluations, the first being what the others are compared with.

    ``sources`` is a choice of those that all have; ``seed`` is that of the intervals. Raises
    ValueError for fewer than two results or the same one twice, for a metric that they do not
    define alike, for SIR and SAR of other sets of sources, on which these depend, and where no
    track or source is common to all.
    """
    _check_distinct(results)
    for metric in metrics:
        _check_definition(results, metric)
    chosen, notes = _sources(results, sources)
    tracks, more = _tracks(results)
    rows = [{track.track: track for track in each.tracks} for each in results]
    scored = [[row[name] for name in tracks] for row in rows]
    values = {metric: _values(scored, chosen, metric) for metric in metrics}
    return Comparison(
        list(results), list(metrics), chosen, tracks, [*_data(results), *notes, *more], values, seed
    )


def _check_distinct(results: Sequence[Results]) -> None:
    if len(results) < 2:
        raise ValueError("There must be two results at least to compare.")
    folders = [each.folder.resolve() for each in results]
    for index, folder in enumerate(folders):
        if folder in folders[:index]:
            raise ValueError(f"{results[index].folder} is given twice: name another folder.")


def _check_definition(results: Sequence[Results], metric: str) -> None:
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}: it must be one of {', '.join(METRICS)}.")
    first = results[0].settings["metrics"].get(metric)
    for other in results:
        theirs = other.settings["metrics"].get(metric)
        if theirs is None or theirs != first:
            raise ValueError(
                f"{results[0].folder} and {other.folder} can't be compared by {metric}: they "
                f"define it as {first!r} and {theirs!r}."
            )
        if metric in ("sir", "sar") and set(other.sources) != set(results[0].sources):
            ours, others = (", ".join(each.sources) for each in (results[0], other))
            raise ValueError(
                f"{results[0].folder} and {other.folder} can't be compared by {metric}, which "
                f"depends on all sources that were scored: {ours} in one, {others} in the other."
            )


def _data(results: Sequence[Results]) -> list[str]:
    """A note where results are of different data."""
    sets = [
        " ".join(str(each.settings["data"].get(k)) for k in ("set", "subset")) for each in results
    ]
    if len(set(sets)) == 1:
        return []
    return [f"The results are of different data: {joined(list(dict.fromkeys(sets)))}."]


def _sources(
    results: Sequence[Results], wanted: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Those to compare, and what to say of the others."""
    common = [name for name in results[0].sources if all(name in r.sources for r in results)]
    every = dict.fromkeys(name for each in results for name in each.sources)
    if not common:
        raise ValueError(
            f"The results have no source in common: {results[0].folder} has "
            f"{', '.join(results[0].sources)}, all together have {', '.join(every)}."
        )
    if wanted is not None:
        if unknown := [name for name in wanted if name not in common]:
            raise ValueError(
                f"Source {unknown[0]!r} is not in all results: they share {', '.join(common)}."
            )
        return list(dict.fromkeys(wanted)), []
    left = [name for name in every if name not in common]
    what = f"Sources that not all results have are left out: {', '.join(left)}."
    return common, [what] if left else []


def _tracks(results: Sequence[Results]) -> tuple[list[str], list[str]]:
    """The names of those that all have, and what to say of the others."""
    rows = [{track.track: track for track in each.tracks} for each in results]
    shared = [name for name in rows[0] if all(name in row for row in rows)]
    tracks = [name for name in shared if _one_recording([row[name] for row in rows])]
    fewer = [
        f"{len(row) - len(shared)} of {len(row)} in {each.folder}"
        for each, row in zip(results, rows, strict=True)
        if len(row) > len(shared)
    ]
    different = [name for name in shared if name not in tracks]
    told = {
        "that not all results have": fewer,
        "whose length or sample rate is not the same in all results": different,
    }
    notes = [f"Tracks {what} are left out: {', '.join(n)}." for what, n in told.items() if n]
    if not tracks:
        others = " and ".join(str(each.folder) for each in results[1:])
        why = "of the same name differ in length or sample rate" if shared else "of one name"
        raise ValueError(
            f"There is nothing to compare in {results[0].folder} and {others}: "
            f"{'all tracks' if shared else 'no tracks are'} {why}."
        )
    return tracks, notes


def _one_recording(tracks: Sequence[TrackResult]) -> bool:
    first = tracks[0]
    return all(
        track.samplerate == first.samplerate and abs(track.seconds - first.seconds) < SAME_LENGTH
        for track in tracks
    )


def _values(
    scored: Sequence[Sequence[TrackResult]], sources: Sequence[str], metric: str
) -> dict[str, list[list[float]]]:
    """By source, one row a model with one score a track; NaN where a track lacks the source."""
    found = {
        source: [
            [track.score(source, metric) if source in track.sources else math.nan for track in row]
            for row in scored
        ]
        for source in sources
    }
    overall: list[list[float]] = [[] for _ in scored]
    for index in range(len(scored[0])):
        columns = [[row[index] for row in found[source]] for source in sources]
        kept = [column for column in columns if not any(map(math.isnan, column))]
        for model, row in enumerate(overall):
            row.append(mean(column[model] for column in kept))
    return {**found, OVERALL: overall}


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All of it for programs; NaN is None, infinities are text."""
    definitions = comparison.results[0].settings["metrics"]
    return {
        "models": [_model_json(each) for each in comparison.results],
        "tracks": comparison.tracks,
        "notes": comparison.notes,
        "definitions": {metric: definitions[metric] for metric in comparison.metrics},
        "intervals": {
            "of": "the mean difference to the first model, paired by track",
            "method": "BCa bootstrap",
            "unit": "track",
            "level": LEVEL,
            "resamples": RESAMPLES,
            "seed": comparison.seed,
        },
        "metrics": {
            metric: {
                source: _column_json(comparison, metric, source) for source in comparison.columns
            }
            for metric in comparison.metrics
        },
        "unscored": {metric: comparison.unscored(metric) for metric in comparison.metrics},
    }


def _model_json(results: Results) -> dict[str, Any]:
    """What was scored, under which settings."""
    settings = {key: results.settings.get(key) for key in ("data", "separation", "versions")}
    return {"folder": str(results.folder), **results.settings["model"], **settings}


def _column_json(comparison: Comparison, metric: str, source: str) -> dict[str, Any]:
    others = range(1, len(comparison.results))
    found = [comparison.difference(metric, source, model) for model in others]
    return {
        **{kind: _plain(comparison.level(metric, source, kind)) for kind in KINDS},
        "differences": [_difference_json(each) for each in found],
        "scores": [_plain(row) for row in comparison.values[metric][source]],
    }


def _difference_json(difference: Difference) -> dict[str, Any]:
    return {
        "mean": plain(difference.mean),
        "interval": [plain(difference.low), plain(difference.high)],
        "excludes_0": difference.decided,
        "tracks": difference.tracks,
        "improved": difference.improved,
        "left_out": difference.left_out,
        "infinite": difference.infinite,
    }


def _plain(values: Iterable[float]) -> list[float | str | None]:
    return [plain(value) for value in values]
