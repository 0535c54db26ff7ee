"""Charts of a report as SVG: box plots of the tracks' scores, and scores over time.

Places along the width are in percent, so a chart fits a phone without shrinking its text; heights
are in pixels. Colours are the style sheet's, by class.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from demucs_lightning.evaluation.report.markup import Markup, element, markup
from demucs_lightning.evaluation.report.numbers import (
    Axis,
    axis,
    box,
    clock,
    present,
    time_axis,
    written,
)
from demucs_lightning.evaluation.results import Results, TrackResult
from demucs_lightning.evaluation.scoring import NAMES
from demucs_lightning.scores import median

COLORS = 8  # in the style sheet
MARGIN = 2.0  # percent at both sides of a box plot, for points at its ends
LABEL, LANE, GAP, FOOT = 20, 26, 10, 22  # heights: a source's name, a box, below it, the axis
BOX, POINT = 14, 3  # height of a box, radius of a point
LONGEST = 24  # characters of a source's name
GOLDEN = 0.618034  # its multiples spread points evenly
CURVES = 220  # height of a chart over time
ARROWS = {True: "M-5 7L0 0L5 7Z", False: "M-5 -7L0 0L5 -7Z"}  # by whether it points up


def box_plot(models: Sequence[Results], metric: str) -> Markup | None:
    """One box a source and model over the tracks' scores, and a point a track; None where no track
    has a score."""
    sources = list(dict.fromkeys(name for model in models for name in model.sources))
    columns = [[model.column(source, metric) for model in models] for source in sources]
    if not any(present(column.values()) for row in columns for column in row):
        return None
    scale = axis(value for row in columns for column in row for value in column.values())
    parts: list[Markup] = []
    top = 0.0
    for number, (source, row) in enumerate(zip(sources, columns, strict=True)):
        parts.append(_row_label(source, row, top))
        top += LABEL
        for model, column in enumerate(row):
            color = color_class(model if len(models) > 1 else number)
            parts.append(_lane(column, scale, top + LANE / 2, color))
            top += LANE
        top += GAP
    return element(
        "svg",
        _grid(scale, top),
        *parts,
        class_="boxes",
        role="img",
        width="100%",
        height=top + FOOT,
        aria_label=f"Box plot of {NAMES[metric]} in dB over the tracks, by source. "
        "The tables hold the same numbers.",
    )


def color_class(number: int) -> str:
    """The style sheet's class of a source or a model."""
    return f"c{number % COLORS}"


def _row_label(source: str, row: Sequence[dict[str, float]], top: float) -> Markup:
    name = source if len(source) <= LONGEST else source[: LONGEST - 1] + "…"
    medians = " · ".join(written(median(column.values())) for column in row)
    return markup(
        element("text", name, x="0", y=top + 14, class_="name"),
        element("text", f"median {medians} dB", x="100%", y=top + 14, class_="aside end"),
    )


def _grid(scale: Axis, bottom: float) -> Markup:
    lines = []
    for tick in scale.ticks:
        x = _across(scale, tick)
        kind = "grid zero" if tick == 0 else "grid"
        lines.append(element("line", x1=x, x2=x, y1=0, y2=bottom, class_=kind))
        lines.append(element("text", _tick(tick), x=x, y=bottom + 16))
    return element("g", *lines, class_="axis middle", aria_hidden="true")


def _lane(column: dict[str, float], scale: Axis, center: float, color: str) -> Markup:
    """A box and its points around one height."""
    points = [
        _point(name, value, scale, center + (LANE - 8) * ((number * GOLDEN) % 1 - 0.5))
        for number, (name, value) in enumerate(column.items())
        if not math.isnan(value)
    ]
    return element("g", _box(column, scale, center), *points, class_=color)


def _box(column: dict[str, float], scale: Axis, center: float) -> Markup | None:
    shape = box(column.values())
    if shape is None:
        return None
    low, first, middle, third, high = (
        scale.place(value)
        for value in (shape.low, shape.first, shape.median, shape.third, shape.high)
    )
    across = (_percent(place) for place in (low, first, third, high, first, middle))
    x_low, x_first, x_third, x_high, left, x_middle = across
    top, bottom = center - BOX / 2, center + BOX / 2
    width = f"{(third - first) * (1 - MARGIN / 50):.3f}%"
    return markup(
        element("line", x1=x_low, x2=x_first, y1=center, y2=center, class_="whisker"),
        element("line", x1=x_third, x2=x_high, y1=center, y2=center, class_="whisker"),
        element("rect", x=left, y=top, width=width, height=BOX, rx=2, class_="box"),
        element("line", x1=x_middle, x2=x_middle, y1=top, y2=bottom, class_="median"),
    )


def _point(name: str, value: float, scale: Axis, y: float) -> Markup:
    return element(
        "circle",
        element("title", f"{name}: {written(value)} dB"),
        cx=_across(scale, value),
        cy=f"{y:.1f}",
        r=POINT,
        class_=None if scale.shows(value) else "beyond",
        data_track=name,
    )


def levels(track: TrackResult, metric: str) -> Axis:
    """The axis of a metric's windows, which may leave out the furthest of them."""
    rows = (getattr(scores, metric) for scores in track.sources.values())
    return axis((value for row in rows for value in row), ticks=5)


def beyond(track: TrackResult, metric: str) -> int:
    """How many windows are not within that axis."""
    down = levels(track, metric)
    rows = (getattr(scores, metric) for scores in track.sources.values())
    return sum(not down.shows(value) for row in rows for value in present(row))


def curves(track: TrackResult, sources: Sequence[str], metric: str) -> Markup:
    """A metric of each window over time, a line a source, broken where there is no score; arrows at
    the edge mark what is beyond it."""
    values = {name: getattr(track.sources[name], metric) for name in track.sources}
    down = levels(track, metric)
    along = time_axis(max(track.seconds, *(len(row) for row in values.values())))
    lines = [
        element(
            "path",
            d=_path(values[name], along, down),
            class_=f"curve {color_class(number)}",
            data_curve=number,
        )
        for number, name in enumerate(sources)
        if name in values
    ]
    inner = element(
        "svg",
        *lines,
        width="100%",
        height=CURVES,
        viewBox="0 0 100 100",
        preserveAspectRatio="none",
    )
    return element(
        "svg",
        _excerpt(track, along),
        *_levels(down),
        _times(along),
        inner,
        *_arrows(values, sources, along, down),
        _level_names(down),
        element("line", y1=0, y2=CURVES, class_="cursor", visibility="hidden"),
        class_="curves",
        role="img",
        width="100%",
        height=CURVES + FOOT,
        tabindex=0,
        data_seconds=along.high,
        aria_label=f"{NAMES[metric]} of {track.track} over time, one line a source. "
        "The arrow keys read the values.",
    )


def _arrows(
    values: Mapping[str, Sequence[float]], sources: Sequence[str], along: Axis, down: Axis
) -> list[Markup]:
    """One at the edge of the chart for every window that is beyond it."""
    return [
        element(
            "svg",
            element("path", d=ARROWS[value > down.high]),
            x=_percent(along.place(second + 0.5), 0),
            y=0 if value > down.high else CURVES,
            class_=f"clipped {color_class(number)}",
        )
        for number, name in enumerate(sources)
        for second, value in enumerate(values.get(name, []))
        if not (math.isnan(value) or down.shows(value))
    ]


def _excerpt(track: TrackResult, along: Axis) -> Markup | None:
    """The part of the track that can be heard, shaded."""
    if track.excerpt is None:
        return None
    start = along.place(track.excerpt.start)
    width = along.place(track.excerpt.start + track.excerpt.seconds) - start
    box = {"x": f"{start:.3f}%", "width": f"{width:.3f}%", "y": 0, "height": CURVES}
    return element("rect", **box, class_="excerpt")


def _height(down: Axis, value: float) -> str:
    return f"{CURVES * (1 - down.place(value) / 100):.1f}"


def _levels(down: Axis) -> list[Markup]:
    places = [_height(down, tick) for tick in down.ticks]
    return [element("line", x1="0", x2="100%", y1=y, y2=y, class_="grid") for y in places]


def _level_names(down: Axis) -> Markup:
    """Above all curves; the highest has no room for its own but for the unit."""
    texts = [
        element("text", _tick(tick), x=2, y=_height(down, tick), dy=-4)
        for tick in down.ticks
        if tick != down.high
    ]
    unit = element("text", "dB", x=2, y=12)
    return element("g", *texts, unit, class_="axis over", aria_hidden="true")


def _tick(value: float) -> str:
    return written(value, 0 if value == int(value) else 1)


def _times(along: Axis) -> Markup:
    texts = [
        element(
            "text",
            clock(tick),
            x=_percent(along.place(tick), 0),
            y=CURVES + 16,
            class_=None if tick == 0 else "end" if along.place(tick) > 97 else "middle",
        )
        for tick in along.ticks
    ]
    return element("g", *texts, class_="axis", aria_hidden="true")


def _path(values: Sequence[float], along: Axis, down: Axis) -> str:
    """Moves to each run of scores, and lines through it; one score alone is a dot."""
    steps: list[str] = []
    for run in _runs(values):
        places = [
            f"{along.place(second + 0.5):.3f} {100 - down.place(value):.2f}"
            for second, value in run
        ]
        steps.append("M" + "L".join(places if len(places) > 1 else places * 2))
    return "".join(steps)


def _runs(values: Sequence[float]) -> Iterator[list[tuple[int, float]]]:
    run: list[tuple[int, float]] = []
    for second, value in enumerate(values):
        if not math.isnan(value):
            run.append((second, value))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _across(scale: Axis, value: float) -> str:
    return _percent(scale.place(value))


def _percent(place: float, margin: float = MARGIN) -> str:
    return f"{margin + place * (1 - margin / 50):.3f}%"
