import math

import pytest

from demucs_lightning.evaluation import unscored as why
from demucs_lightning.evaluation.results import METRICS, WINDOWED, Results
from demucs_lightning.evaluation.scoring import FULL, NAMES, score
from demucs_lightning.evaluation.table import as_json, table
from demucs_lightning.evaluation.unscored import count, joined, listed, reason, unscored
from tests.evaluation.made import constant, settings, track
from tests.metrics.references import music, separated

RATE = 4000


def scored(change, *, sources=2):
    """A track's scores after ``change`` of its references and estimates."""
    references = music(sources, 2, 2 * RATE).float()
    estimates = separated(references).float()
    change(references, estimates)

    def read(start, stop):
        return references[..., start:stop], estimates[..., start:stop]

    names = ("bass", "vocals")[:sources]
    return track("Ann - One", score(read, 2 * RATE, samplerate=RATE, sources=names))


def nothing(references, estimates):
    pass


def silent(references, estimates):
    references[0] = 0


def empty(references, estimates):
    estimates[0] = 0


def cancelled(references, estimates):
    references[0, 1] = -references[0, 0]


OTHER = (why.SILENT + why.OTHERS, why.EMPTY + why.OTHERS)


@pytest.mark.parametrize(
    ("change", "nsdr", "si_sdr", "windowed", "others"),
    [
        (nothing, None, None, None, None),
        (silent, why.SILENT, why.SILENT, why.SILENT, OTHER[0]),
        (empty, None, why.EMPTY, why.EMPTY, OTHER[1]),
        (cancelled, None, None, why.CANCELLED, why.CANCELLED),
    ],
)
def test_scores_tell_why_there_are_none(change, nsdr, si_sdr, windowed, others):
    found = scored(change)
    assert reason(found, "bass", "nsdr") == nsdr
    assert reason(found, "bass", "si_sdr") == si_sdr
    for metric in WINDOWED:
        assert reason(found, "bass", metric) == windowed
        assert reason(found, "vocals", metric) == others
    assert reason(found, "vocals", "nsdr") is None
    assert reason(found, "vocals", "si_sdr") is None
    assert reason(found, "drums", "nsdr") == why.ABSENT


def test_a_lone_source_has_no_sir():
    found = scored(nothing, sources=1)
    assert {metric: reason(found, "bass", metric) for metric in METRICS} == {
        **dict.fromkeys(METRICS),
        "sir": why.ALONE,
    }


def results(tmp_path, tracks):
    return Results(tmp_path, settings("mine", sources=["bass", "vocals"], tracks=2), tracks)


def test_tracks_without_a_score_are_counted_with_their_reasons(tmp_path):
    found = results(tmp_path, [scored(silent), scored(empty), scored(nothing)])
    assert unscored(found, "nsdr") == {"bass": {why.SILENT: 1}}
    assert unscored(found, "sdr") == {
        "bass": {why.SILENT: 1, why.EMPTY: 1},
        "vocals": {OTHER[0]: 1, OTHER[1]: 1},
    }
    assert unscored(found, "sar") == unscored(found, "sdr")
    text = " ".join(table(found).split())
    assert (
        "Without SDR, and left out of median and mean: bass in 1 track (silent reference) and 1 "
        "track (silent estimate); vocals in 1 track (silent reference of another source) and 1 "
        "track (silent estimate of another source)." in text
    )
    written = as_json(found)
    assert written["unscored"]["sdr"] == {"bass": 2, "vocals": 2}
    assert written["reasons"]["nsdr"] == {"bass": {why.SILENT: 1}}
    assert "nan" not in text


def test_the_table_names_the_metrics_in_full_and_the_model_by_its_hash(tmp_path):
    found = results(tmp_path, [track("A", {"bass": constant(3.0), "vocals": constant(math.nan)})])
    text = table(found)
    lines = text.splitlines()
    assert {"nSDR (Music Demixing Challenge 2021)", "SDR (BSS Eval v4 as of museval)"} <= set(lines)
    assert f"mine · weights {found.settings['model']['hash'][:12]} · MusdbHQ test" in text
    told = " ".join(text.split())
    for metric in ("nsdr", "sdr"):  # in the words of the results
        assert found.settings["metrics"][metric] in told
    assert lines[2].split() == ["nSDR", "median", "3.00", "-", "3.00"]
    assert set(FULL) == set(NAMES) == set(METRICS)


def test_words_for_one_and_for_many():
    assert (count(1, "track"), count(0, "track")) == ("1 track", "0 tracks")
    assert [joined(list(names)) for names in ("", "a", "ab", "abc")] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]
    assert listed({"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 2, "y": 1}}) == (
        "a and b in 1 track (x); c in 2 tracks (x) and 1 track (y)"
    )
