"""Folders of results as an evaluation leaves them: made-up scores, and a real recording's sound."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demucs_lightning import audio
from demucs_lightning.evaluation.results import (
    METRICS,
    Excerpt,
    Results,
    SourceScores,
    TrackResult,
    excerpt_folder,
    read_results,
    write_settings,
    write_track,
)
from tests.metrics.references import recording, separated

SOURCES = ("drums", "bass", "other", "vocals")
LEVELS = {"nsdr": 0.0, "si_sdr": -0.8, "sdr": 0.4, "isr": 5.0, "sir": 6.5, "sar": 0.9}
DEFINITIONS = {
    "nsdr": "10·log10((‖s‖² + 1e-7) / (‖s − ŝ‖² + 1e-7)) over the whole track, all channels.",
    "si_sdr": "scale-invariant SDR over the whole track: the estimate is compared with the "
    "reference scaled to fit it best.",
    "sdr": "BSS Eval v4, filters of 512 taps for the whole track, windows of 1 s, hop 1 s; "
    "the median over the windows.",
    "isr": "BSS Eval v4 image to spatial distortion ratio, windows as for SDR.",
    "sir": "BSS Eval v4 source to interference ratio, windows as for SDR.",
    "sar": "BSS Eval v4 sources to artifacts ratio, windows as for SDR.",
}
WORDS = ("River", "Paper", "Winter", "Signal", "Amber", "Hollow", "Velvet", "Static", "Harbor")


def titles(count: int) -> list[str]:
    """Names like those of tracks, each once."""
    return [
        f"The {WORDS[n % 9]}s - {WORDS[n * 5 // 9 % 9]} {WORDS[n * 7 // 4 % 9]} {n + 1}"
        for n in range(count)
    ]


def settings(name: str, *, sources: Sequence[str] = SOURCES, tracks: int = 0) -> dict:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return {
        "model": {"name": name, "klass": "HTDemucs", "hash": digest, "sources": list(sources)},
        "data": {"set": "MusdbHQ", "subset": "test", "tracks": tracks},
        "separation": {
            "shifts": 1,
            "overlap": 0.25,
            "segment": 7.8,
            "precision": "fp32",
            "seed": 42,
        },
        "metrics": DEFINITIONS,
        "versions": {"demucs_lightning": "0.1.0", "torch": "2.13.0"},
    }


def scores(rng: np.random.Generator, *, level: float, windows: int) -> SourceScores:
    """Scores around ``level`` dB, with pauses in which there are none."""
    drift = np.cumsum(rng.normal(0, 0.6, windows))
    course = level + drift - drift.mean() + rng.normal(0, 1.2, windows)
    silent = np.convolve(rng.random(windows) < 0.04, np.ones(5), "same") > 0
    rows = {}
    for metric in METRICS[2:]:
        values = course + LEVELS[metric] + rng.normal(0, 0.3, windows)
        rows[metric] = np.where(silent, math.nan, values).tolist()
    nsdr, si_sdr = level, level + LEVELS["si_sdr"] - abs(rng.normal(0, 0.5))
    return SourceScores(silent=False, nsdr=nsdr, si_sdr=float(si_sdr), **rows)


def track(name: str, sources: dict[str, SourceScores], *, seconds: float = 60.0) -> TrackResult:
    excerpt = Excerpt(start=round(seconds / 3, 1), seconds=6.0)
    return TrackResult("0" * 64, name, 44100, seconds, 1.0, sources, excerpt)


def constant(value: float, *, windows: int = 3, silent: bool = False) -> SourceScores:
    """The same number for everything."""
    rows = {metric: [value] * windows for metric in METRICS[2:]}
    return SourceScores(silent=silent, nsdr=value, si_sdr=value, **rows)


def made(folder: Path, *, tracks: int = 8, name: str = "htdemucs", lift: float = 0.0) -> Results:
    """Results of so many tracks, ``lift`` dB better than others; without excerpts."""
    rng = np.random.default_rng(3)
    names = titles(tracks)
    for title in names:
        base = rng.normal(0, 1.6)
        found = {}
        for source, mean in zip(SOURCES, (8.6, 9.1, 5.2, 8.2), strict=True):
            level = mean + base + lift + rng.normal(0, 1.3)
            found[source] = scores(rng, level=level, windows=int(rng.integers(50, 90)))
        windows = max(len(each.sdr) for each in found.values())
        write_track(folder, track(title, found, seconds=windows + 0.4))
    write_settings(folder, settings(name, tracks=tracks))
    return read_results(folder)


def with_excerpts(
    results: Results, tracks: Iterable[TrackResult], *, seconds: float = 6.0
) -> Results:
    """Writes the sound of these tracks: a real recording, and estimates with faults."""
    stems = recording().float()[..., : int(seconds * 44100)]
    estimates = separated(stems.double()).float()
    for each in tracks:
        write_excerpt(results, each, stems, estimates)
    return results


def write_excerpt(results: Results, track: TrackResult, stems: Tensor, estimates: Tensor) -> None:
    """``(S, C, T)`` as the files of a track's excerpt, whose sources may be fewer."""
    sounds = {"mixture": stems.sum(0).clamp(-1, 1)}
    for source, reference, estimate in zip(track.sources, stems, estimates, strict=False):
        sounds |= {f"{source}.reference": reference, f"{source}.estimate": estimate}
    for name, sound in sounds.items():
        path = excerpt_folder(results.folder, track.track) / f"{name}.flac"
        audio.write(path, sound, samplerate=track.samplerate)


def kept(folder: Path, tracks: Iterable[TrackResult], **told: Any) -> Results:
    """The results of these tracks, written and read."""
    tracks = list(tracks)
    for each in tracks:
        write_track(folder, each)
    sources = list(tracks[0].sources)
    write_settings(folder, settings("htdemucs", sources=sources, tracks=len(tracks)) | told)
    return read_results(folder)


def tone(seconds: float, pitch: float, *, samplerate: int = 44100) -> Tensor:
    """Stereo, half of full scale."""
    time = torch.arange(int(seconds * samplerate), dtype=torch.float64) / samplerate
    return (torch.sin(2 * math.pi * pitch * time) / 2).float().expand(2, -1)
