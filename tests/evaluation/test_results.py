"""Results as files: what is written is read again, and what is damaged is said."""

import json
import math

import pytest

from demucs_lightning.evaluation.results import (
    METRICS,
    CorruptResult,
    Excerpt,
    SourceScores,
    TrackResult,
    read_results,
    read_settings,
    read_track,
    track_id,
    track_path,
    write_settings,
    write_text,
    write_track,
)

NAN, INF = math.nan, math.inf
SCORES = SourceScores(False, 6.5, -INF, [1.0, NAN, 4.0, INF], [NAN] * 4, [-INF] * 4, [2.0] * 4)
RESULT = TrackResult("abc", "Ann - One", 44100, 4.25, 1.5, {"drums": SCORES}, Excerpt(1.0, 2.5))
SETTINGS = {"model": {"name": "mine"}, "data": {}, "metrics": {}, "separation": None}


def test_a_result_comes_back_with_nan_and_infinities(tmp_path):
    path = write_track(tmp_path, RESULT)
    assert path == track_path(tmp_path, "Ann - One") == tmp_path / "tracks" / "Ann - One.json"
    assert str(read_track(path)) == str(RESULT)  # NaN is not equal to itself
    row = json.loads(path.read_text(), parse_constant=pytest.fail)["sources"]["drums"]
    assert row["sdr"] == [1.0, None, 4.0, "inf"]
    assert row["si_sdr"] == "-inf"
    assert [each.name for each in path.parent.iterdir()] == ["Ann - One.json"]


def test_a_track_is_the_median_of_its_windows_that_have_a_score():
    assert RESULT.score("drums", "nsdr") == 6.5
    assert RESULT.score("drums", "sdr") == 4.0
    assert math.isnan(RESULT.score("drums", "isr"))
    with pytest.raises(ValueError, match="metric is 'sd': it must be one of nsdr, si_sdr, sdr"):
        RESULT.score("drums", "sd")


def test_results_are_read_by_name_and_column(tmp_path):
    other = TrackResult("abc", "A", 8000, 1.0, 1.0, {"bass": SCORES, "drums": SCORES})
    write_settings(tmp_path, SETTINGS)
    for result in (RESULT, other):
        write_track(tmp_path, result)
    found = read_results(tmp_path)
    assert [track.track for track in found.tracks] == ["A", "Ann - One"]
    assert found.name == "mine"
    assert found.sources == ["bass", "drums"]
    assert found.column("drums", "nsdr") == {"A": 6.5, "Ann - One": 6.5}
    assert found.column("bass", "sar") == {"A": 2.0}
    assert set(METRICS) == {"nsdr", "si_sdr", "sdr", "isr", "sir", "sar"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:100], "it is no JSON"),
        (lambda text: "[]", "is not of format 1"),
        (lambda text: text.replace('"format": 1', '"format": 9'), "is not of format 1"),
        (lambda text: text.replace('"nsdr"', '"nsrd"'), "KeyError at 'nsdr'"),
        (lambda text: text.replace("6.5", '"6.5"'), "'6.5': no number"),
        (lambda text: text.replace("null,", "", 1), "not the same number of every metric"),
        (lambda text: text.replace('"start"', '"begin"'), "is damaged: TypeError"),
        (lambda text: text.replace('"Ann - One"', '"Ann - Two"'), "of the track Ann - Two"),
    ],
)
def test_a_damaged_result_is_said(tmp_path, change, said):
    path = write_track(tmp_path, RESULT)
    path.write_text(change(path.read_text()))
    with pytest.raises(CorruptResult, match=said) as caught:
        read_track(path)
    assert str(path) in str(caught.value)
    write_settings(tmp_path, SETTINGS)
    with pytest.raises(CorruptResult, match=said):
        read_results(tmp_path)


def test_a_folder_without_results_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no results .*: no settings\.json in it"):
        read_results(tmp_path)
    write_settings(tmp_path, SETTINGS)
    with pytest.raises(FileNotFoundError, match="holds no scored track"):
        read_results(tmp_path)
    (tmp_path / "settings.json").write_text('{"format": 1}')
    with pytest.raises(CorruptResult, match="it has no model, data and metrics"):
        read_settings(tmp_path)


def test_a_failure_leaves_the_former_file(tmp_path):
    path = tmp_path / "file"
    write_text(path, "before")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\udcff")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_names_of_files_are_safe_and_differ():
    names = [
        "Ann - One",
        "a/b",
        "a_b",
        "a:b",
        "",
        "..",
        ".x",
        "Ж" * 99,
        "Ж" * 100,
        "x" * 300,
        "\udcff",
    ]
    found = [track_id(name) for name in names]
    assert found[0] == "Ann - One"
    assert len(set(found)) == len(names)
    for name in found:
        assert name.strip(" .") == name
        assert not set('/\\:*?"<>|\0') & set(name)
        assert 0 < len(name.encode()) < 200
