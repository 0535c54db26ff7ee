"""The report's numbers, text and pictures, as they stand in the file."""

import base64
import hashlib
import math
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from demucs_lightning.evaluation.report import excerpts, write_report, writing
from demucs_lightning.evaluation.report.excerpts import bitrate, encoded, read_sounds, size
from demucs_lightning.evaluation.report.markup import element
from demucs_lightning.evaluation.results import METRICS, Results, excerpt_folder
from tests.evaluation.made import SOURCES, constant, kept, made, track, with_excerpts

HOSTILE = "</script><script>hacked = 1</script><img src=x onerror='hacked = 1'>\"'&amp;"


class Page(HTMLParser):
    """A parsed report: tables as rows of (text, value), elements with their attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.html = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.tables: list[list[list[tuple[str, str | None]]]] = []
        self._cell: tuple[list[str], str | None] | None = None
        self._open: list[str] = []
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.elements.append((tag, given))
        self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = ([], given.get("data-value"))

    def handle_endtag(self, tag: str) -> None:
        self._open = self._open[: len(self._open) - 1 - self._open[::-1].index(tag)]
        if tag in ("td", "th") and self._cell is not None:
            self.tables[-1][-1].append(("".join(self._cell[0]), self._cell[1]))
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self._open[-1:] != ["style"]:
            self.texts.append(data)
        if self._cell is not None:
            self._cell[0].append(data)

    def all(self, tag: str, name: str | None = None) -> list[dict[str, str | None]]:
        """The attributes of all elements of a kind, or of those of a class."""
        kept = (given for kind, given in self.elements if kind == tag)
        return [
            given for given in kept if name is None or name in (given.get("class") or "").split()
        ]


def report(results: Results, *others: Results) -> Page:
    path = results.folder / "report.html"
    write_report(results, path, others=others)
    return Page(path)


def number(value: str | None) -> float:
    assert value is not None
    return float(value)


def shown(text: str) -> float:
    return float(text.replace("−", "-").replace("∞", "inf").replace("–", "nan"))


def test_every_track_has_its_scores(tmp_path: Path):
    results = made(tmp_path, tracks=5)
    tables = report(results).tables[2:]
    assert len(tables) == len(METRICS)
    for metric, rows in zip(("nsdr", "sdr", "isr", "sir", "sar", "si_sdr"), tables, strict=True):
        head, *rows = rows
        assert [text for text, _ in head] == ["Track", *SOURCES, "mean"]
        assert [row[0][0] for row in rows] == [each.track for each in results.tracks]
        for each, (_, *cells) in zip(results.tracks, rows, strict=True):
            scores = [each.score(source, metric) for source in SOURCES]
            for (text, value), score in zip(cells, (*scores, np.mean(scores)), strict=True):
                assert number(value) == pytest.approx(score, rel=1e-12)
                assert shown(text) == pytest.approx(score, abs=0.00501)


def test_medians_and_means_are_those_of_the_tracks(tmp_path: Path):
    results = made(tmp_path, tracks=6)
    shown_metrics = (("nsdr", "sdr"), ("isr", "sir", "sar", "si_sdr"))
    tables = report(results).tables[:2]
    for metrics, (top, below, *rows) in zip(shown_metrics, tables, strict=True):
        assert len(top) == 1 + len(metrics)
        assert [text for text, _ in below] == ["median", "mean"] * len(metrics)
        columns = [
            [list(results.column(source, metric).values()) for source in SOURCES]
            for metric in metrics
        ]
        wanted = np.array(
            [
                [average(column[n]) for column in columns for average in (np.median, np.mean)]
                for n in range(len(SOURCES))
            ]
        )
        wanted = np.vstack([wanted, wanted.mean(0)])
        assert [row[0][0] for row in rows] == [*SOURCES, "overall"]
        found = [[number(value) for _, value in row[1:]] for row in rows]
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_the_page_says_what_was_measured_and_how(tmp_path: Path):
    results = made(tmp_path, tracks=3)
    text = "\n".join(report(results).texts)
    settings = results.settings
    digest = settings["model"]["hash"]
    for told in (*settings["metrics"].values(), digest, "MusdbHQ test", "torch 2.13.0"):
        assert told in text
    assert "3 tracks" in text
    assert "only" not in text.partition("3 tracks")[0]
    results.settings["data"]["tracks"] = 7
    assert "only 3 of 7 tracks: the others have no results" in "\n".join(report(results).texts)
    for value in settings["separation"].values():
        assert str(value) in text


def test_what_is_not_a_number_is_written_and_drawn_as_such(tmp_path: Path):
    values = {"Ann - One": math.inf, "Bob - Two": -math.inf, "Cem - Three": math.nan, "D": -0.001}
    tracks = [track(name, {"vocals": constant(value)}) for name, value in values.items()]
    page = report(kept(tmp_path, tracks))
    cells = [row[1] for row in page.tables[2][1:]]
    assert cells == [
        ("∞", "Infinity"),
        ("−∞", "-Infinity"),
        ("–", "nan"),
        ("0.00", "-0.001"),
    ]
    points = page.all("circle")
    assert len(points) == 5 * 3  # none for NaN, nor for SIR of a lone source
    nsdr = {point["data-track"]: point for point in points[:3]}
    assert nsdr["Ann - One"]["cx"] == "98.000%"
    assert nsdr["Bob - Two"]["cx"] == "2.000%"
    assert nsdr["Ann - One"]["class"] == "beyond"
    assert "nan%" not in page.html
    assert "inf%" not in page.html


def test_without_any_score_there_is_a_page(tmp_path: Path):
    silent = {"vocals": constant(math.nan, silent=True)}
    page = report(kept(tmp_path, [track("Ann - One", silent)]))
    why = "vocals in 1 track (silent reference)"
    told = "".join(page.texts)
    assert told.count(f"Without nSDR and SDR, and left out of median and mean: {why}.") == 1
    assert told.count("No track has a score.") == 6
    assert page.tables[2][1][1] == ("–", "nan")
    assert not page.all("rect", "box")


@pytest.mark.parametrize("windows", [0, 1])
def test_one_short_track_has_a_page(tmp_path: Path, windows: int):
    sources = {"vocals": constant(4.0, windows=windows), "drums": constant(5.0, windows=windows)}
    page = report(kept(tmp_path, [track("Ann - One", sources, seconds=1.2)]))
    text = "".join(page.texts)
    assert "1 track," in text
    assert text.count("Ann - Oneworst") == 1
    assert "There is no excerpt of this track to hear." in text
    assert not page.all("section", "player")
    assert len(page.all("path", "curve")) == 2 * windows


def test_sdr_over_time_breaks_where_there_is_none(tmp_path: Path):
    scores = constant(0.0, windows=6)
    scores.sdr[:] = [0.0, 10.0, math.nan, 5.0, math.nan, math.inf]
    page = report(kept(tmp_path, [track("Ann - One", {"vocals": scores}, seconds=6.0)]))
    (path,) = page.all("path", "curve")
    # 6 windows over the width, 0 to 10 dB over the height, from the top; a lone score is a dot.
    assert path["d"] == (
        "M8.333 100.00L25.000 0.00M58.333 50.00L58.333 50.00M91.667 0.00L91.667 0.00"
    )


def test_worst_and_best_are_by_sdr_else_by_nsdr(tmp_path: Path):
    scores = {"A": 3.0, "B": 9.0, "C": -1.0, "D": 5.0, "E": 4.0}
    results = kept(tmp_path / "a", [track(k, {"v": constant(s)}) for k, s in scores.items()])
    found = {label: each.track for label, each in writing.chosen(results)}
    assert found == {
        "worst": "C",
        "best": "B",
        "median": "E",
        "first quartile": "A",
        "third quartile": "D",
    }
    unscored = [track(k, {"v": constant(s, windows=0)}) for k, s in scores.items()]
    found = {label: each.track for label, each in writing.chosen(kept(tmp_path / "b", unscored))}
    assert found["worst"] == "C"
    assert found["best"] == "B"


def test_names_of_strangers_are_text(tmp_path: Path):
    tracks = [track(f"{HOSTILE} {n}", {HOSTILE: constant(float(n))}) for n in range(3)]
    told = {
        "model": {"name": HOSTILE, "klass": HOSTILE, "hash": HOSTILE, HOSTILE: HOSTILE},
        "data": {"set": HOSTILE, "subset": HOSTILE},
        "separation": {HOSTILE: HOSTILE},
        "metrics": {"nsdr": HOSTILE, "sdr": HOSTILE},
        "versions": {HOSTILE: HOSTILE},
    }
    page = report(kept(tmp_path, tracks, **told))
    assert [tag for tag, given in page.elements if any(key.startswith("on") for key in given)] == []
    assert page.all("img") == []
    run = [given for given in page.all("script") if given.get("type") != "application/json"]
    assert run == [{}]
    assert [row[0][0] for row in page.tables[2][1:]] == [each.track for each in tracks]
    assert any(text == HOSTILE for text in page.texts)


def test_no_file_outside_the_folder_of_excerpts_is_read(tmp_path: Path):
    results = kept(tmp_path, [track("Ann - One", {"vocals": constant(1.0)})])
    with_excerpts(results, results.tracks, seconds=0.5)
    folder = excerpt_folder(results.folder, "Ann - One")
    for kind in ("reference", "estimate"):
        (folder / f"vocals.{kind}.flac").rename(tmp_path / f"stranger.{kind}.flac")
    up = "../../stranger"
    outside = kept(tmp_path, [track("Ann - One", {up: constant(1.0)})])
    assert (folder / f"{up}.reference.flac").resolve().is_file()
    assert read_sounds(outside, outside.tracks[0]) is None


def test_the_page_asks_for_nothing_and_allows_nothing_else(tmp_path: Path):
    page = report(made(tmp_path, tracks=3))
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", page.html)
    (policy,) = (
        given["content"] for given in page.all("meta") if given.get("http-equiv") is not None
    )
    assert policy is not None
    script = next(text for text in page.scripts if "use strict" in text)
    style = page.html.split("<style>")[1].split("</style>")[0]
    digests = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (script, style)
    ]
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{digests[0]}'; style-src 'sha256-{digests[1]}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    assert not [tag for tag, given in page.elements if "style" in given]


def test_models_stand_side_by_side(tmp_path: Path):
    first, second = made(tmp_path / "a", tracks=4), made(tmp_path / "b", tracks=5, lift=1.0)
    page = report(first, second)
    rows = page.tables[0][2:]
    assert [row[0][0] for row in rows[::2]] == [*SOURCES, "overall"]
    assert [row[1][0] for row in rows[:1]] == ["htdemucs (a)"]
    assert [row[0][0] for row in rows[1::2]] == ["htdemucs (b)"] * 5
    for above, below in zip(rows[::2], rows[1::2], strict=True):
        assert len(above) == 1 + len(below) == 6
    best = page.all("td", "best")
    assert len(best) == (4 + 1) * (2 * 2 + 4 * 2)  # one of the two in every column
    columns = page.tables[2]
    assert len(columns[1]) == 1 + 2 * (4 + 1)
    assert len(columns) - 2 == 5
    missing = [row for row in columns[2:] if row[1] == ("–", "nan")]
    assert len(missing) == 1  # the track that only the second has
    assert len(page.all("rect", "box")) == 6 * 4 * 2
    assert "not scored on the same tracks: 4 and 5, 4 in common." in "".join(page.texts)


def test_definitions_that_differ_are_all_told(tmp_path: Path):
    first = made(tmp_path / "a", tracks=2)
    told = {"metrics": first.settings["metrics"] | {"sdr": "the SDR of another tool"}}
    second = kept(tmp_path / "b", first.tracks, **told)
    text = "".join(report(first, second).texts)
    for each in (first, second):
        assert each.settings["metrics"]["sdr"] in text


def test_a_damaged_excerpt_is_told_and_left_out(tmp_path: Path, caplog):
    results = made(tmp_path, tracks=2)
    with_excerpts(results, results.tracks, seconds=0.5)
    path = excerpt_folder(tmp_path, results.tracks[0].track) / "bass.estimate.flac"
    path.write_bytes(b"no sound")
    page = report(results)
    assert len(page.all("section", "player")) == 1
    assert f"no sound of {results.tracks[0].track}" in caplog.text
    assert path.name in caplog.text


def test_a_player_takes_the_room_that_is_planned_for_it(tmp_path: Path, monkeypatch):
    results = made(tmp_path, tracks=5)
    with_excerpts(results, results.tracks, seconds=2.0)
    sounds = read_sounds(results, results.tracks[0])
    assert sounds is not None
    assert (sounds.seconds, len(sounds.streams)) == (2.0, 9)
    assert bitrate(sounds, writing.BUDGET) == 192
    assert bitrate(sounds, 10**5) == 64
    assert bitrate(sounds, 600_000) == 96
    taken = len(encoded(sounds.mixture, sounds.samplerate, 192))
    assert 9 * taken == pytest.approx(size(sounds, 192), rel=0.05)

    monkeypatch.setattr(excerpts, "player", lambda *_, **__: element("section", class_="player"))
    assert len(report(results).all("section", "player")) == 5
    monkeypatch.setattr(writing, "BUDGET", int(2.5 * size(sounds, 192)))
    assert len(report(results).all("section", "player")) == 2


def test_150_tracks_make_a_small_page_in_seconds(tmp_path: Path):
    results = made(tmp_path, tracks=150)
    start = time.process_time()
    page = report(results)
    assert time.process_time() - start < 10
    assert len(page.html) < 3e6
    assert len(page.all("circle")) == 150 * 4 * 6
    assert all(len(table) == 151 for table in page.tables[2:])


def test_what_cannot_be_written_is_told_in_one_sentence(tmp_path: Path):
    results = made(tmp_path, tracks=1)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"The report .*report\.html can't be written \(.*\)\."):
        write_report(results, tmp_path / "file" / "report.html")
