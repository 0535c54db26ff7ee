import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import bootstrap

from demucs_lightning.evaluation.comparison import as_json, compare
from demucs_lightning.evaluation.results import Results, SourceScores
from demucs_lightning.evaluation.table import aggregate
from demucs_lightning.evaluation.unscored import ALONE
from tests.evaluation.made import SOURCES, constant, settings, titles, track

NAN, INF = math.nan, math.inf


def results(folder, scores, **told):
    """Results in no file: ``scores`` are of {track: {source: one number or SourceScores}}."""
    tracks = []
    for name, row in sorted(scores.items()):
        sources = {
            source: value if isinstance(value, SourceScores) else constant(value)
            for source, value in row.items()
        }
        tracks.append(track(name, sources))
    return Results(folder, settings(folder.name, tracks=len(tracks)) | told, tracks)


def table(seed, *, tracks=40, lift=0.0, sources=SOURCES):
    """Scores of tracks of which some are harder than others: {track: {source: dB}}."""
    harder = np.random.default_rng(9).normal(6, 3, tracks)
    noise = np.random.default_rng(seed).normal(lift, 0.5, (tracks, len(sources)))
    return {
        name: dict(zip(sources, (harder[index] + noise[index]).tolist(), strict=True))
        for index, name in enumerate(titles(tracks))
    }


@pytest.fixture
def pair(tmp_path):
    a, b = table(1), table(2, lift=0.4)
    return results(tmp_path / "a", a), results(tmp_path / "b", b)


def test_numbers_are_those_of_numpy_and_scipy(pair):
    comparison = compare(*pair)
    first, second = (
        {source: np.array(list(each.column(source, "nsdr").values())) for source in SOURCES}
        for each in pair
    )
    for each in (first, second):
        each["overall"] = np.mean([each[source] for source in SOURCES], axis=0)
    for source in (*SOURCES, "overall"):
        differences = second[source] - first[source]
        found = comparison.difference("nsdr", source, 1)
        assert found.mean == pytest.approx(differences.mean())
        assert (found.tracks, found.left_out) == (40, 0)
        assert found.improved == (differences > 0).sum()
        expected = bootstrap((differences,), np.mean, rng=np.random.default_rng(0))
        low, high = expected.confidence_interval
        np.testing.assert_allclose((found.low, found.high), (low, high), atol=0.04 * (high - low))
    # Unpaired, the tracks' own differences would hide this one.
    assert comparison.difference("nsdr", "overall", 1).decided
    assert first["overall"].std() > 5 * differences.std()


def test_levels_are_those_of_the_table(pair):
    comparison = compare(*pair, metrics=["sdr", "sir"])
    for metric in ("sdr", "sir"):
        for kind in ("median", "mean"):
            rows = [aggregate(each, metric, kind) for each in pair]
            for column in comparison.columns:
                expected = [row[column] for row in rows]
                assert comparison.level(metric, column, kind) == pytest.approx(expected)


def test_a_model_equals_itself(pair, tmp_path):
    again = replace(pair[0], folder=tmp_path / "again")
    found = compare(pair[0], again).difference("nsdr", "overall", 1)
    assert (found.mean, found.low, found.high, found.improved) == (0, 0, 0, 0)
    assert not found.decided


def test_order_turns_signs(pair):
    there = compare(*pair).difference("sdr", "bass", 1)
    back = compare(*pair[::-1]).difference("sdr", "bass", 1)
    assert back.mean == pytest.approx(-there.mean)
    assert back.improved == there.tracks - there.improved
    width = there.high - there.low
    assert (-back.high, -back.low) == pytest.approx((there.low, there.high), abs=0.04 * width)
    assert there.decided
    assert back.decided


def test_the_seed_decides(pair):
    one, same = (compare(*pair).difference("sdr", "bass", 1) for _ in range(2))
    other = compare(*pair, seed=1).difference("sdr", "bass", 1)
    assert one == same
    assert one.low != other.low
    assert one.mean == other.mean


def test_three_models(pair, tmp_path):
    third = results(tmp_path / "c", table(3, lift=-1))
    comparison = compare(*pair, third)
    assert len(comparison.level("nsdr", "drums", "mean")) == 3
    assert comparison.difference("nsdr", "drums", 1) == compare(*pair).difference(
        "nsdr", "drums", 1
    )
    assert comparison.difference("nsdr", "drums", 2).high < 0


def test_missing_scores_are_left_out_in_pairs(tmp_path):
    a = {"one": {"bass": 1.0, "rest": 2.0}, "two": {"bass": NAN, "rest": 4.0}}
    b = {"one": {"bass": 2.0, "rest": INF}, "two": {"bass": 7.0, "rest": 5.0}}
    more = {"three": {"bass": 3.0, "rest": 3.0}, "four": {"rest": 1.0}}
    comparison = compare(results(tmp_path / "a", a | more), results(tmp_path / "b", b | more))
    bass = comparison.difference("nsdr", "bass", 1)
    assert (bass.mean, bass.tracks, bass.improved, bass.left_out) == (0.5, 2, 1, 2)
    rest = comparison.difference("nsdr", "rest", 1)
    assert (rest.tracks, rest.left_out, rest.infinite) == (4, 0, 1)
    assert rest.mean == pytest.approx(1 / 3)
    assert comparison.level("nsdr", "bass", "mean") == [2.0, 2.5]
    # Overall, a track counts by the sources that both have.
    assert comparison.tracks == ["four", "one", "three", "two"]
    assert comparison.values["nsdr"]["overall"] == [[1, 1.5, 3, 4], [1, INF, 3, 5]]


def test_infinities_are_differences_but_in_no_interval(tmp_path):
    a = {"one": INF, "two": 1.0, "three": INF, "four": 2.0, "five": -INF, "six": 3.0}
    b = {"one": INF, "two": INF, "three": 5.0, "four": 3.0, "five": 0.0, "six": 5.0}
    pair = [
        results(tmp_path / name, {t: {"bass": value, "rest": 1.0} for t, value in row.items()})
        for name, row in (("a", a), ("b", b))
    ]
    comparison = compare(*pair)
    found = dict(zip(comparison.tracks, comparison.differences("nsdr", "bass", 1), strict=True))
    assert found == {"one": 0, "two": INF, "three": -INF, "four": 1, "five": INF, "six": 2}
    bass = comparison.difference("nsdr", "bass", 1)
    assert (bass.tracks, bass.infinite, bass.left_out, bass.improved) == (6, 3, 0, 4)
    assert bass.mean == 1
    assert 0 <= bass.low < 1 < bass.high <= 2
    # Overall, infinities of both hide no difference of the other source.
    assert comparison.differences("nsdr", "overall", 1)[comparison.tracks.index("one")] == 0
    written = json.dumps(as_json(comparison), allow_nan=False)
    assert json.loads(written)["metrics"]["nsdr"]["bass"]["scores"][0].count("inf") == 2


def test_only_infinite_differences_have_an_infinite_mean(tmp_path):
    pair = [
        results(tmp_path / n, {t: {"bass": v} for t in "xy"})
        for n, v in zip("ab", (1.0, INF), strict=True)
    ]
    found = compare(*pair).difference("sdr", "bass", 1)
    assert (found.mean, found.tracks, found.improved, found.infinite) == (INF, 2, 2, 2)
    assert math.isnan(found.low)


def test_json_says_what_was_measured_and_how(pair):
    found = json.loads(json.dumps(as_json(compare(*pair, seed=7)), allow_nan=False))
    for each, model in zip(pair, found["models"], strict=True):
        assert model["data"] == each.settings["data"]
        assert model["separation"] == each.settings["separation"]
        assert model["hash"] == each.settings["model"]["hash"]
    told = pair[0].settings["metrics"]
    assert found["definitions"] == {metric: told[metric] for metric in ("nsdr", "sdr")}
    interval = {key: found["intervals"][key] for key in ("unit", "level", "resamples", "seed")}
    assert interval == {"unit": "track", "level": 0.95, "resamples": 10_000, "seed": 7}


def test_a_lone_source_has_no_sir_whatever_old_results_hold(tmp_path):
    pair = [results(tmp_path / n, {t: {"bass": INF} for t in "xy"}) for n in "ab"]
    comparison = compare(*pair, metrics=["sir"])
    assert comparison.difference("sir", "bass", 1).tracks == 0
    assert all(map(math.isnan, comparison.level("sir", "bass", "median")))
    assert comparison.unscored("sir") == [{"bass": {ALONE: 2}}] * 2


def test_one_track_has_no_interval(tmp_path):
    pair = (results(tmp_path / n, {"one": {"bass": v}}) for n, v in (("a", 1.0), ("b", 3.0)))
    found = compare(*pair).difference("nsdr", "bass", 1)
    assert (found.mean, found.tracks, found.improved) == (2, 1, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert not found.decided


def test_nothing_scored_is_no_number(tmp_path):
    pair = [results(tmp_path / n, {"one": {"bass": NAN}, "two": {"bass": NAN}}) for n in "ab"]
    comparison = compare(*pair)
    found = comparison.difference("nsdr", "overall", 1)
    assert (found.tracks, found.left_out, found.decided) == (0, 2, False)
    assert math.isnan(found.mean)
    assert as_json(comparison)["metrics"]["nsdr"]["bass"]["mean"] == [None, None]


def test_only_what_all_have_is_compared(pair, tmp_path):
    fewer = {name: row for name, row in list(table(3).items())[:30]}
    fewer = {name: {**row, "piano": 1.0} for name, row in fewer.items()}
    comparison = compare(pair[0], results(tmp_path / "c", fewer | {"extra": {"bass": 1.0}}))
    assert len(comparison.tracks) == 30
    assert comparison.sources == list(SOURCES)
    fewer = f"10 of 40 in {tmp_path / 'a'}, 1 of 31 in {tmp_path / 'c'}"
    assert comparison.notes == [
        "Sources that not all results have are left out: piano.",
        f"Tracks that not all results have are left out: {fewer}.",
    ]


def test_another_recording_of_the_same_name_is_left_out(pair):
    other = pair[1].tracks
    changed = [replace(other[0], seconds=61), replace(other[1], samplerate=48000), *other[2:]]
    comparison = compare(pair[0], replace(pair[1], tracks=changed))
    assert len(comparison.tracks) == 38
    assert comparison.notes == [
        "Tracks whose length or sample rate is not the same in all results are left out: "
        f"{other[0].track}, {other[1].track}."
    ]


def test_sources_may_be_chosen(pair):
    comparison = compare(*pair, sources=["vocals", "bass"])
    assert comparison.columns == ["vocals", "bass", "overall"]
    with pytest.raises(ValueError, match="'piano' is not in all results: they share drums, bass"):
        compare(*pair, sources=["piano"])


def test_other_data_is_said(pair):
    other = pair[1].settings | {"data": {"set": "Folder", "subset": "all", "tracks": 40}}
    comparison = compare(pair[0], replace(pair[1], settings=other))
    assert comparison.notes == ["The results are of different data: MusdbHQ test and Folder all."]


def test_what_cannot_be_compared(pair, tmp_path):
    a, b = pair
    with pytest.raises(ValueError, match="two results at least"):
        compare(a)
    with pytest.raises(ValueError, match="a is given twice"):
        compare(a, replace(b, folder=tmp_path / "x" / ".." / "a"))
    with pytest.raises(ValueError, match="metric is 'sisdr': it must be one of nsdr, "):
        compare(a, b, metrics=["sisdr"])
    other = b.settings | {"metrics": {**b.settings["metrics"], "sdr": "windows of 2 s"}}
    with pytest.raises(ValueError, match="by sdr: they define it as .* and 'windows of 2 s'"):
        compare(a, replace(b, settings=other))
    compare(a, replace(b, settings=other), metrics=["nsdr"])
    with pytest.raises(ValueError, match="no source in common: .*a has drums, bass, other, vocals"):
        compare(a, results(tmp_path / "c", {name: {"piano": 1.0} for name in titles(3)}))
    with pytest.raises(ValueError, match="nothing to compare in .*a and .*c: no tracks are of one"):
        compare(a, results(tmp_path / "c", {"another": {"bass": 1.0}}))


@pytest.mark.parametrize("metric", ["sir", "sar"])
def test_what_depends_on_all_sources_is_not_compared_between_others(tmp_path, metric):
    whole = results(tmp_path / "a", table(1), model={"name": "a", "sources": list(SOURCES)})
    fewer = results(
        tmp_path / "b",
        table(1, sources=("drums", "vocals")),
        model={"name": "b", "sources": ["drums", "vocals"]},
    )
    with pytest.raises(ValueError, match=f"can't be compared by {metric}, which depends on all"):
        compare(whole, fewer, metrics=[metric])
    assert compare(whole, fewer, metrics=["sdr"]).sources == ["drums", "vocals"]
