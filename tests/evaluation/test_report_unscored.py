"""What the report says of scores that don't exist or don't fit its axes."""

import json
import math
from dataclasses import replace
from pathlib import Path

from demucs_lightning.evaluation.results import SourceScores
from tests.evaluation.made import constant, kept, track
from tests.evaluation.test_report import report


def test_tracks_without_a_score_are_counted_and_say_why(tmp_path: Path):
    """The first track's bass is silent, the second's estimate of it is, the third's cancel out."""
    nan = math.nan
    rows = [
        {"bass": SourceScores(True, nan, nan, *[[nan] * 3] * 4), "vocals": unheard(4.0)},
        {"bass": SourceScores(False, 0.0, nan, *[[nan] * 3] * 4), "vocals": unheard(5.0)},
        {"bass": unheard(6.0), "vocals": unheard(7.0)},
        {"bass": constant(8.0), "vocals": constant(9.0)},
    ]
    names = [f"{letter} - Song" for letter in "ABCD"]
    results = kept(tmp_path, [track(name, row) for name, row in zip(names, rows, strict=True)])
    page = report(results)
    text = "".join(page.texts)
    silent, empty = "1 track (silent reference)", "1 track (silent estimate)"
    assert f"Without nSDR, and left out of median and mean: bass in {silent}." in text
    assert (
        f"Without SDR, and left out of median and mean: bass in {silent} and {empty} and 1" in text
    )
    assert "Without ISR, SIR and SAR, and left out" in text
    assert f"Without SI-SDR, and left out of median and mean: bass in {silent} and {empty}." in text
    assert "vocals in 1 track (silent reference of another source)" in text
    titles = [cell["title"] for cell in page.all("td", "unscored")]
    assert len(titles) == 1 + 4 * 6 + 2
    assert titles[1:7] == [
        "silent reference",
        "silent reference of another source",
        "silent estimate",
        "silent estimate of another source",
        *["in every second a stem is silent or its channels cancel"] * 2,
    ]


def unheard(value: float) -> SourceScores:
    """Scores of the whole track only."""
    return SourceScores(False, value, value, *[[math.nan] * 3] * 4)


def test_a_lone_source_has_no_sir_and_the_page_says_why(tmp_path: Path):
    scores = replace(constant(4.0), sir=[math.inf] * 3)
    page = report(kept(tmp_path, [track(name, {"vocals": scores}) for name in ("A", "B")]))
    assert "∞" not in page.html
    text = "".join(page.texts)
    why = "vocals in 2 tracks (no other source that could interfere)"
    assert f"Without SIR, and left out of median and mean: {why}." in text
    assert text.count("No track has a score.") == 1
    assert len(page.all("svg", "boxes")) == 5


def test_scores_beyond_the_axis_are_marked_counted_and_true_in_the_tip(tmp_path: Path):
    scores = constant(0.0, windows=20)
    scores.sdr[:] = [*range(10), *range(10)]
    scores.sdr[4], scores.sdr[9] = -80.0, 300.0
    page = report(kept(tmp_path, [track("Ann - One", {"vocals": scores}, seconds=20.0)]))
    arrows = page.all("svg", "clipped")
    assert [(each["x"], each["y"]) for each in arrows] == [("22.500%", "220"), ("47.500%", "0")]
    assert "2 scores beyond the axis, at the arrows" in "".join(page.texts)
    (values,) = (json.loads(text) for text in page.scripts if text.startswith('{"vocals":['))
    assert (values["vocals"][4], values["vocals"][9]) == ("−80.00", "300.00")
    inside = track("Ann - One", {"vocals": constant(4.0, windows=20)}, seconds=20.0)
    page = report(kept(tmp_path / "inside", [inside]))
    assert not page.all("svg", "clipped")
    assert "beyond the axis, at the arrows" not in "".join(page.texts)
