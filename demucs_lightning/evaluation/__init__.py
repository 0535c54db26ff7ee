"""Scores of a model or of a folder of stems on a test set: computed, kept as files, and read."""

from demucs_lightning.evaluation.results import (
    METRICS,
    CorruptResult,
    Excerpt,
    Results,
    SourceScores,
    TrackResult,
    read_results,
    read_track,
    write_settings,
    write_track,
)

__all__ = [
    "METRICS",
    "CorruptResult",
    "Excerpt",
    "Results",
    "SourceScores",
    "TrackResult",
    "read_results",
    "read_track",
    "write_settings",
    "write_track",
]
