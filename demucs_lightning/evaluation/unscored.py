"""Which tracks have no score, and why, as the scores themselves tell."""

import math
from collections import Counter
from collections.abc import Mapping

from demucs_lightning.evaluation.results import WHOLE, Results, TrackResult

ABSENT = "not in the track"
ALONE = "no other source that could interfere"
SILENT, EMPTY = "silent reference", "silent estimate"
OTHERS = " of another source"
CANCELLED = "in every second a stem is silent or its channels cancel"
UNDEFINED = "not defined"


def reason(track: TrackResult, source: str, metric: str) -> str | None:
    """In a few words; None where there is a score."""
    if source not in track.sources:
        return ABSENT
    if not math.isnan(track.score(source, metric)):
        return None
    if track.sources[source].silent:
        return SILENT
    if metric in WHOLE:
        return EMPTY if metric == "si_sdr" else UNDEFINED
    if metric == "sir" and len(track.sources) == 1:
        return ALONE
    return _of_windows(track, source)


def _of_windows(track: TrackResult, source: str) -> str:
    """BSS Eval has no score of any source while one is silent. SI-SDR, which has one unless
    reference or estimate is all zeros, tells which it is."""
    empty = {name for name, scores in track.sources.items() if math.isnan(scores.si_sdr)}
    if source in empty:
        return EMPTY
    if any(scores.silent for scores in track.sources.values()):
        return SILENT + OTHERS
    return EMPTY + OTHERS if empty else CANCELLED


def unscored(results: Results, metric: str) -> dict[str, dict[str, int]]:
    """How many tracks have no score for which reason, by source, where there are any. A track that
    lacks the source is none of them."""
    found = {
        source: Counter(
            why
            for track in results.tracks
            if source in track.sources and (why := reason(track, source, metric))
        )
        for source in results.sources
    }
    return {source: dict(counts) for source, counts in found.items() if counts}


def listed(counts: Mapping[str, Mapping[str, int]]) -> str:
    """What `unscored` has found in words, sources of the same reasons together."""
    groups: dict[str, list[str]] = {}
    for source, reasons in counts.items():
        told = " and ".join(f"{count(n, 'track')} ({why})" for why, n in reasons.items())
        groups.setdefault(told, []).append(source)
    return "; ".join(f"{joined(sources)} in {told}" for told, sources in groups.items())


def count(number: int, name: str) -> str:
    """``1 track``, ``2 tracks``."""
    return f"{number} {name}{'s' * (number != 1)}"


def joined(names: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
