"""The tables of a report: medians and means by source, and every track's scores."""

import math
from collections.abc import Iterable, Sequence

from demucs_lightning.evaluation.report.charts import color_class
from demucs_lightning.evaluation.report.markup import Markup, element, markup
from demucs_lightning.evaluation.report.numbers import (
    exact,
    present,
    track_mean,
    written,
)
from demucs_lightning.evaluation.results import Results, TrackResult
from demucs_lightning.evaluation.scoring import FULL, NAMES
from demucs_lightning.evaluation.table import KINDS, OVERALL, aggregate
from demucs_lightning.evaluation.unscored import reason


def model_names(models: Sequence[Results]) -> list[str]:
    """The models' names, with their folders' where two are alike."""
    names = [model.name for model in models]
    return [
        name if names.count(name) == 1 else f"{name} ({model.folder.name or model.folder})"
        for name, model in zip(names, models, strict=True)
    ]


def all_sources(models: Sequence[Results]) -> list[str]:
    """Of all the models, in the order of the first."""
    return list(dict.fromkeys(name for model in models for name in model.sources))


def summary(models: Sequence[Results], metrics: Sequence[str]) -> Markup:
    """Median and mean over the tracks: a row a source and model, then the mean of the sources."""
    several = len(models) > 1
    found = [
        [aggregate(model, metric, kind) for metric in metrics for kind in KINDS] for model in models
    ]
    groups = [
        _group(name, models, [[column.get(name, math.nan) for column in row] for row in found])
        for name in (*all_sources(models), OVERALL)
    ]
    top = [
        element("th", "Source", rowspan=2, scope="col"),
        element("th", "Model", rowspan=2, scope="col", class_="model") if several else None,
        *(element("th", f"{NAMES[each]} (dB)", colspan=2, scope="colgroup") for each in metrics),
    ]
    below = [element("th", name, scope="col") for _ in metrics for name in KINDS]
    head = element("thead", element("tr", *top), element("tr", *below))
    kind = "summary several" if several else "summary"
    table = element("table", head, *groups, class_=kind)
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label="Scores")


def _group(source: str, models: Sequence[Results], rows: Sequence[Sequence[float]]) -> Markup:
    """The rows of one source; of several models the best of each column stands out."""
    several = len(models) > 1
    best = [max(present(column), default=None) for column in zip(*rows, strict=True)]
    names = model_names(models)
    lines = []
    for number, values in enumerate(rows):
        head = element("th", source, scope="rowgroup", rowspan=len(rows)) if number == 0 else None
        model = None
        if several:
            told = {"scope": "row", "title": names[number]}
            model = element("th", swatch(number), names[number], **told)
        cells = [
            _cell(value, best=several and value == top)
            for value, top in zip(values, best, strict=True)
        ]
        lines.append(element("tr", head, model, *cells))
    return element("tbody", *lines, data_source=source)


def swatch(number: int) -> Markup:
    """A dot of a source's or a model's colour."""
    return element("span", class_=f"swatch {color_class(number)}", aria_hidden="true")


def legend(names: Iterable[str]) -> Markup:
    """Colours and the names that they stand for."""
    items = (element("li", swatch(number), name) for number, name in enumerate(names))
    return element("ul", *items, class_="legend")


def _cell(value: float, *, best: bool = False, why: str | None = None) -> Markup:
    classes = "best" if best else "unscored" if why else None
    return element("td", written(value), data_value=exact(value), class_=classes, title=why)


def track_table(models: Sequence[Results], metric: str) -> Markup:
    """A row a track, a column a source and model, and the mean over the sources; sorts by click."""
    several, sources, names = len(models) > 1, all_sources(models), model_names(models)
    columns = [*sources, "mean"]
    found = [{track.track: track for track in model.tracks} for model in models]
    tracks = sorted({name for tracks in found for name in tracks})
    rows = [
        element(
            "tr",
            element("th", name, scope="row", title=name),
            *(_score(tracks.get(name), column, metric) for column in columns for tracks in found),
        )
        for name in tracks
    ]
    if several:
        groups = [element("th", name, colspan=len(models), scope="colgroup") for name in columns]
        labels = [
            element("span", swatch(each), names[each], title=names[each])
            for _ in columns
            for each in range(len(models))
        ]
        top = element("tr", element("th"), *groups)
    else:
        labels, top = [markup(name) for name in columns], None
    head = element("tr", *(_sorter(label) for label in (markup("Track"), *labels)))
    caption = element("caption", f"{FULL[metric]} of every track, dB")
    table = element("table", caption, element("thead", top, head), element("tbody", *rows))
    attributes = {"data_metric": metric, "tabindex": 0, "role": "region"}
    label = f"{NAMES[metric]} of every track"
    return element("div", table, class_="scroll tracks", aria_label=label, **attributes)


def _sorter(label: Markup) -> Markup:
    return element("th", element("button", label, type="button"), scope="col", aria_sort="none")


def _score(track: TrackResult | None, column: str, metric: str) -> Markup:
    if track is None:
        return _cell(math.nan, why="not scored")
    if column in track.sources:
        return _cell(track.score(column, metric), why=reason(track, column, metric))
    return _cell(track_mean(track, metric) if column == "mean" else math.nan)
