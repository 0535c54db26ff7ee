"""All that an evaluation has found as one piece of JSON, enough for the appendix of a paper.

Settings, definitions and versions are those of settings.json. NaN is null, with the reason beside
it; infinities are the strings "inf" and "-inf".
"""

import math
from collections.abc import Collection
from typing import Any

from demucs_lightning.evaluation.results import METRICS, TrackResult, plain
from demucs_lightning.evaluation.run import Outcome
from demucs_lightning.evaluation.table import as_json, table
from demucs_lightning.evaluation.unscored import reason


def summary(outcome: Outcome, wanted: Collection[str]) -> dict[str, Any]:
    """What is known by now of the tracks ``wanted``, and how many of them are not done: those that
    ``failed``, and those ``left``, of which other processes are ``busy`` with some."""
    results, left = outcome.results, outcome.left(wanted)
    return {
        **as_json(results),
        "complete": not left and not outcome.faults,
        "counts": {
            "tracks": outcome.of,
            "wanted": len(wanted),
            "scored": len(results.tracks),
            "failed": len(outcome.faults),
            "left": len(left),
            "busy": outcome.busy,
        },
        "failed": outcome.faults,
        "scores": [_track(result) for result in results.tracks],
        "table": table(results) if results.tracks else None,
    }


def _track(result: TrackResult) -> dict[str, Any]:
    return {
        "track": result.track,
        "seconds": result.seconds,
        "samplerate": result.samplerate,
        "machine": result.machine,
        "sources": {name: _source(result, name) for name in result.sources},
    }


def _source(result: TrackResult, source: str) -> dict[str, Any]:
    """Each metric, why some have no score, and how many windows of BSS Eval there are."""
    scores = result.sources[source]
    reasons = {metric: reason(result, source, metric) for metric in METRICS}
    return {
        **{metric: plain(result.score(source, metric)) for metric in METRICS},
        "reasons": {metric: why for metric, why in reasons.items() if why},
        "silent": scores.silent,
        "windows": len(scores.sdr),
        "windows_without_score": sum(map(math.isnan, scores.sdr)),
    }
