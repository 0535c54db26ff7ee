"""A report: what goes in, in which order.

One HTML file, made from a folder of results: settings, tables, box plots, and a few tracks from
the worst to the best with their scores over time, spectrograms and a player. It needs no network
and holds all that it shows.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from demucs_lightning.evaluation.report import charts, excerpts, tables
from demucs_lightning.evaluation.report.markup import Markup, element, json_script, markup
from demucs_lightning.evaluation.report.numbers import (
    FURTHER,
    clock,
    present,
    ranked,
    track_mean,
    written,
)
from demucs_lightning.evaluation.report.page import page
from demucs_lightning.evaluation.results import Results, TrackResult, write_text
from demucs_lightning.evaluation.scoring import FULL, MAIN, NAMES
from demucs_lightning.evaluation.table import OVERALL, aggregate, left_out, weights
from demucs_lightning.evaluation.unscored import count

FACTS = {
    "model klass": "class",
    "model hash": "SHA-256 of the weights",
    "demucs_lightning": "demucs-lightning",
}
BUDGET = 11_000_000  # bytes of the page for sound
SHOWN = ("worst", "best", "median", "first quartile", "third quartile")  # in order of weight
FOLDED = "ISR, SIR, SAR and SI-SDR"
SURE = 2  # tracks that are shown, whether they can be heard or not
PLACES = (0.0, 1.0, 0.5, 0.25, 0.75)  # of those in the ranking


def write_report(results: Results, path: str | Path, *, others: Sequence[Results] = ()) -> None:
    """Write the report on ``results`` to ``path``, with ``others`` beside it in tables and boxes.

    Sound and pictures are those of ``results``; without excerpts, or where one can't be read, the
    report does without. Raises OSError where the file can't be written.
    """
    models = [results, *others]
    title = " and ".join(tables.model_names(models))
    body = markup(
        _header(models, title),
        element(
            "main",
            _scores(models),
            _distribution(models),
            _tracks(results),
            _every_track(models),
            _measured(models),
        ),
        element("div", id="tip", role="status", hidden=True),
    )
    _write(Path(path), page(f"{title}: evaluation", body))


def _write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise OSError(f"The report {path} can't be written ({error.strerror}).") from error


def _tracks_of(results: Results) -> str:
    """How many tracks have results, and of how many if others are lacking."""
    there, wanted = len(results.tracks), results.settings["data"].get("tracks") or 0
    if there >= wanted:
        return count(there, "track")
    return f"only {there} of {count(wanted, 'track')}: the others have no results"


def _header(models: Sequence[Results], title: str) -> Markup:
    results = models[0]
    data = results.settings["data"]
    length = _length(sum(track.seconds for track in results.tracks))
    facts = [
        " ".join(str(data[key]) for key in ("set", "subset") if data.get(key)),
        f"{_tracks_of(results)}, {length}",
        ", ".join(results.sources),
    ]
    return element(
        "header",
        element("p", "Music source separation · evaluation", class_="eyebrow"),
        element("h1", title),
        element("p", " · ".join(filter(None, facts)), class_="facts"),
        _conditions(results) if len(models) == 1 else None,
        _headline(models),
    )


def _length(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _headline(models: Sequence[Results]) -> Markup:
    """The two figures that papers print, of every model."""
    names = tables.model_names(models)
    items = []
    for metric in MAIN:
        values = []
        for number, model in enumerate(models):
            unit = (
                markup(" dB ", tables.swatch(number), names[number]) if len(models) > 1 else " dB"
            )
            value = written(aggregate(model, metric, "median")[OVERALL])
            values.append(element("dd", value, element("span", unit)))
        title = element("dt", FULL[metric], element("br"), "median over tracks, mean of sources")
        items.append(element("div", title, *values))
    return element("dl", *items, class_="headline")


def _conditions(results: Results) -> Markup:
    """Under which settings, in one line."""
    separation = results.settings.get("separation") or {}
    parts = [markup(_fact_name(key), " ", _plain(value, key)) for key, value in separation.items()]
    if digest := weights(results):
        parts.append(markup("weights ", element("code", digest)))
    versions = results.settings.get("versions") or {}
    parts += [markup(_fact_name(key), " ", _plain(value)) for key, value in versions.items()]
    between = (part for pair in ((" · ", part) for part in parts) for part in pair)
    return element("p", *list(between)[1:], class_="conditions")


def _section(title: str, *content: object, name: str) -> Markup:
    heading = element("h2", title, id=name)
    return element("section", heading, *content, aria_labelledby=name)


def _scores(models: Sequence[Results]) -> Markup:
    return _section(
        "Scores",
        element("p", _counted(models), class_="note"),
        _summary(models, MAIN),
        element("details", element("summary", FOLDED), _summary(models, FURTHER)),
        name="scores",
    )


def _summary(models: Sequence[Results], metrics: Sequence[str]) -> Markup:
    return markup(
        tables.summary(models, metrics), _left_out(models, metrics), _definitions(models, metrics)
    )


def _left_out(models: Sequence[Results], metrics: Sequence[str]) -> Markup | None:
    """How many tracks have no score, and why, of every model."""
    names = tables.model_names(models) if len(models) > 1 else [""]
    told = [
        element("li", f"{name}: " if name else None, line)
        for name, model in zip(names, models, strict=True)
        for line in left_out(model, metrics)
    ]
    return element("ul", *told, class_="lacking") if told else None


def _counted(models: Sequence[Results]) -> str:
    """What the averages are over."""
    found = (
        "Median and mean are over the tracks that have a score, overall is the mean of the sources."
    )
    sets = [{track.track for track in model.tracks} for model in models]
    if any(each != sets[0] for each in sets):
        counts = " and ".join(str(len(each)) for each in sets)
        common = len(set.intersection(*sets))
        found += f" The models were not scored on the same tracks: {counts}, {common} in common."
    return found


def _definitions(models: Sequence[Results], metrics: Iterable[str]) -> Markup:
    """What each metric is, in the words of the results; all of them where they differ."""
    items = []
    for metric in metrics:
        told = {str(model.settings["metrics"].get(metric) or "–"): None for model in models}
        texts = [element("dd", text) for text in told]
        items.append(element("div", element("dt", NAMES[metric]), element("div", *texts)))
    return element("dl", *items, class_="definitions")


def _distribution(models: Sequence[Results]) -> Markup:
    names = tables.model_names(models)
    return _section(
        "Distribution",
        element(
            "p",
            "A point is a track. A box goes from the first to the third quartile, its whiskers to "
            "the last tracks within 1.5 times its length. Tracks beyond the axis are hollow, at "
            "its end.",
            class_="note",
        ),
        tables.legend(names) if len(models) > 1 else None,
        _boxes(models, MAIN),
        element("details", element("summary", FOLDED), _boxes(models, FURTHER)),
        name="distribution",
    )


def _boxes(models: Sequence[Results], metrics: Iterable[str]) -> Markup:
    plots = [
        element(
            "figure",
            element("figcaption", f"{NAMES[metric]} (dB)"),
            charts.box_plot(models, metric) or element("p", "No track has a score.", class_="note"),
            data_boxes=metric,
        )
        for metric in metrics
    ]
    return element("div", *plots, class_="plots")


def chosen(results: Results) -> list[tuple[str, TrackResult]]:
    """Tracks to show and what each is in the ranking: the worst, the best, and some between."""
    order = ranked(results.tracks)
    found: dict[int, str] = {}
    for label, place in zip(SHOWN, PLACES, strict=True):
        found.setdefault(round(place * (len(order) - 1)), label) if order else None
    return [(label, order[index]) for index, label in found.items()]


def _tracks(results: Results) -> Markup | None:
    """The worst and the best track, and some between as far as the page has room for sound."""
    parts: list[Markup] = []
    room = BUDGET
    for number, (label, track) in enumerate(chosen(results)):
        sounds = excerpts.read_sounds(results, track)
        needed = 0 if sounds is None else excerpts.size(sounds, excerpts.bitrate(sounds, BUDGET))
        if number < SURE or 0 < needed <= room:
            parts.append(_track(results, track, label, sounds))
            room -= needed
    return _section("Tracks to see and hear", *parts, name="tracks") if parts else None


def _track(
    results: Results, track: TrackResult, label: str, sounds: excerpts.Sounds | None
) -> Markup:
    means = [
        f"{NAMES[metric]} {written(track_mean(track, metric))} dB"
        for metric in MAIN
        if not math.isnan(track_mean(track, metric))
    ]
    heading = element("h3", track.track, element("span", label, class_="badge"))
    facts = " · ".join((clock(track.seconds), *means))
    if sounds is None:
        heard = element("p", "There is no excerpt of this track to hear.", class_="note")
    else:
        bitrate = excerpts.bitrate(sounds, BUDGET)
        heard = excerpts.player(sounds, label=track.track, bitrate=bitrate)
    return element(
        "article",
        heading,
        element("p", facts, class_="facts"),
        _over_time(results, track),
        heard,
        aria_label=f"{label}: {track.track}",
    )


def _over_time(results: Results, track: TrackResult) -> Markup | None:
    """SDR of each window; None where no window has one."""
    rows = {name: scores.sdr for name, scores in track.sources.items()}
    if not any(present(row) for row in rows.values()):
        return None
    sources = results.sources
    data = {name: [written(value) for value in rows.get(name, [])] for name in sources}
    what = "SDR (dB) of every second. There is none while any reference or estimate is silent."
    shaded = " The excerpt is shaded." if track.excerpt else ""
    if number := charts.beyond(track, "sdr"):
        told = count(number, "score")
        shaded += f" {told} beyond the axis, at the arrows; pointer or arrow keys tell all values."
    return element(
        "figure",
        element("figcaption", what, shaded),
        tables.legend(sources),
        charts.curves(track, sources, "sdr"),
        json_script(data, data_values=True),
        data_curves=True,
    )


def _every_track(models: Sequence[Results]) -> Markup:
    metrics = (*MAIN, *FURTHER)
    buttons = [
        element(
            "label",
            element("input", type="radio", name="metric", value=name, checked=name == MAIN[0]),
            element("span", NAMES[name]),
            class_="choice",
        )
        for name in metrics
    ]
    return _section(
        "Every track",
        element("fieldset", element("legend", "Metric"), *buttons, id="metrics"),
        *(tables.track_table(models, metric) for metric in metrics),
        name="every-track",
    )


def _measured(models: Sequence[Results]) -> Markup:
    """The settings of each evaluation."""
    names = tables.model_names(models)
    parts = []
    for name, model in zip(names, models, strict=True):
        heading = element("h3", name) if len(models) > 1 else None
        items = [
            element("div", element("dt", key), element("dd", value), class_=_width(value))
            for key, value in _facts(model.settings)
        ]
        parts.append(markup(heading, element("dl", *items, class_="settings")))
    return _section("Settings", *parts, name="settings")


def _width(value: str) -> str | None:
    return "long" if len(value) > 40 else None


def _facts(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Everything that the settings hold but the definitions, one line each."""
    found = []
    for part in ("model", "data", "separation", "versions"):
        values = settings.get(part)
        if not isinstance(values, dict):
            found.append((part, "stems from files" if part == "separation" else _plain(values)))
            continue
        for key, value in values.items():
            name = f"{part} {key}" if part in ("model", "data") else key
            found.append((_fact_name(name), _plain(value, key)))
    return found


def _fact_name(key: str) -> str:
    return FACTS.get(key, key.replace("_", " "))


def _plain(value: Any, key: str = "") -> str:
    if value is None:
        return "the model's own" if key == "segment" else "–"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{text} s" if key == "segment" else text
