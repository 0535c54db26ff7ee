"""Numbers of a report: boxes, axes, which track is best, and how a score is written.

Infinite scores count in medians and means, as they do in the tables of a run; what can't be drawn
is put at the edge of a chart.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from demucs_lightning.evaluation.results import TrackResult
from demucs_lightning.evaluation.scoring import MAIN, NAMES
from demucs_lightning.scores import mean

FURTHER = tuple(name for name in NAMES if name not in MAIN)
WHISKER = 1.5  # of Tukey's boxes, in interquartile ranges
REACH = 4  # interquartile ranges beyond the quartiles that an axis shows


def present(values: Iterable[float]) -> list[float]:
    """The values without NaN."""
    return [value for value in values if not math.isnan(value)]


def track_mean(track: TrackResult, metric: str) -> float:
    """The mean over the sources that have a score."""
    return mean(track.score(source, metric) for source in track.sources)


def written(value: float, digits: int = 2) -> str:
    """A score to read: a dash for NaN, a real minus sign, no minus before zero."""
    if math.isnan(value):
        return "–"
    text = "∞" if math.isinf(value) else f"{abs(value):.{digits}f}"
    return f"−{text}" if value < 0 and text.strip("0.") else text


def exact(value: float) -> str:
    """A score as the page's script reads it, with all its digits."""
    return repr(value) if math.isfinite(value) else f"{value}".replace("inf", "Infinity")


@dataclass(frozen=True)
class Box:
    """Quartiles, and the last values within 1.5 interquartile ranges of them."""

    low: float
    first: float
    median: float
    third: float
    high: float


def box(values: Iterable[float]) -> Box | None:
    """Of the finite values; None where there are none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    first, center, third = np.quantile(finite, (0.25, 0.5, 0.75)).tolist()
    reach = WHISKER * (third - first)
    inside = [value for value in finite if first - reach <= value <= third + reach]
    # Interpolated quartiles can lie beyond the last value that is inside.
    return Box(min(*inside, first), first, center, third, max(*inside, third))


@dataclass(frozen=True)
class Axis:
    """From ``low`` to ``high``, drawn from 0 to 100."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Where a value is drawn, in percent; beyond the axis at its end."""
        return 100 * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)

    def shows(self, value: float) -> bool:
        return self.low <= value <= self.high


def axis(values: Iterable[float], *, ticks: int = 6) -> Axis:
    """An axis of round numbers for the finite values, but for the furthest outliers."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    first, third = np.quantile(finite, (0.25, 0.75)).tolist()
    reach = REACH * (third - first)
    low, high = max(min(finite), first - reach), min(max(finite), third + reach)
    if high - low < 1:
        low, high = low - 0.5, high + 0.5
    step = _round_step((high - low) / ticks)
    steps = range(math.floor(low / step), math.ceil(high / step) + 1)
    places = tuple(round(step * number, 9) for number in steps)
    return Axis(places[0], places[-1], places)


def time_axis(seconds: float) -> Axis:
    """From 0 to the end of a track, with ticks at round times."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600)
    step = next((step for step in steps if seconds / step <= 8), 7200)
    count = math.floor(seconds / step) + 1
    return Axis(0.0, max(seconds, 1e-3), tuple(float(step * number) for number in range(count)))


def clock(seconds: float) -> str:
    """``m:ss``."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def ranked(tracks: Sequence[TrackResult]) -> list[TrackResult]:
    """From worst to best by SDR, or by nSDR where no track has an SDR; without either, left out."""
    for metric in ("sdr", "nsdr"):
        scores = [(track_mean(track, metric), track) for track in tracks]
        kept = [pair for pair in scores if not math.isnan(pair[0])]
        if kept:
            return [track for _, track in sorted(kept, key=lambda pair: pair[0])]
    return []


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
