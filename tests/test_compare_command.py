import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from demucs_lightning import commands
from demucs_lightning.commands.compare import letter
from demucs_lightning.evaluation.results import SETTINGS, read_results, track_path, write_track
from tests.evaluation.made import constant, kept, made, titles, track


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["demucs-lightning"])


@pytest.fixture
def run(capsys):
    """What the command prints on stdout and stderr."""

    def started(*argv):
        commands.main(["compare", *argv])
        printed = capsys.readouterr()
        return printed.out, printed.err

    return started


@pytest.fixture
def refused(capsys):
    """The one sentence with which the command ends."""

    def started(*argv):
        with pytest.raises(SystemExit) as caught:
            commands.main(["compare", *argv])
        assert caught.value.code == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return started


def row(text, title):
    """The cells of the first line that begins like this."""
    line = next(line for line in text.splitlines() if line.startswith(title))
    return line.removeprefix(title).split()


def constants(name, values, *, source="bass"):
    """Results with one number a track."""
    tracks = [track(t, {source: constant(v)}) for t, v in zip(titles(99), values, strict=False)]
    return kept(Path(name), tracks)


def test_models_side_by_side(run):
    a = made(Path("a"), name="htdemucs")
    made(Path("b"), name="mine", lift=0.5)
    out, err = run("a", "b")
    assert err == ""
    assert out.splitlines()[0].startswith("A  htdemucs · a · weights ")
    assert "shifts 1, overlap 0.25, segment 7.8, precision fp32" in out
    assert "on 8 tracks" in out
    nsdr, sdr = out.split("\ndB ")[1:]
    assert "nSDR (Music Demixing Challenge 2021)\ndB " in out
    assert "SDR (BSS Eval v4 as of museval)\ndB " in out
    assert f" · weights {a.settings['model']['hash'][:12]} · " in out
    assert row(nsdr, "    ") == ["drums", "bass", "other", "vocals", "overall"]
    for text, metric in ((nsdr, "nsdr"), (sdr, "sdr")):
        levels = [a.column(source, metric).values() for source in a.sources]
        means = [sum(values) / len(values) for values in levels]
        expected = [*means, sum(means) / 4]
        assert [float(cell) for cell in row(text, "A mean")] == pytest.approx(expected, abs=0.006)
        raised = [value + 0.5 for value in expected]
        assert [float(cell) for cell in row(text, "B mean")] == pytest.approx(raised, abs=0.006)
        assert row(text, "B - A mean") == ["+0.500"] * 5
        assert row(text, "   95%") == ["+0.500"] * 10
        assert row(text, "B - A improved") == ["8", "of", "8"] * 5
    for name in ("nSDR", "SDR"):
        better = "B is better than A in drums, bass, other, vocals, overall"
        assert f"\n{name}: {better}: the interval excludes 0.\n" in out
    assert "nSDR: 10·log10((‖s‖² + 1e-7)" in out
    assert "BCa bootstrap of the mean over the tracks, paired, 10,000 draws, seed 0." in out


def test_says_what_is_shown_and_what_is_not(run):
    zigzag = [0.1 * (-1) ** index for index in range(20)]
    constants("a", [5.0] * 20)
    constants("same", [5 + value for value in zigzag])
    constants("worse", [4 + value for value in zigzag])
    out, _ = run("a", "same", "worse", "--metric", "nsdr")
    assert "nSDR: no difference is shown in bass, overall: the interval includes 0." in out
    assert "nSDR: C is worse than A in bass, overall: the interval excludes 0." in out
    assert "better than" not in out
    low, high = map(float, row(out, "   95%")[:2])
    assert low < 0 < high
    assert row(out, "C - A improved") == ["0", "of", "20"] * 2
    assert "too narrow" not in out


def test_one_track_and_few(run):
    constants("a", [5.0])
    constants("b", [6.0])
    out, _ = run("a", "b", "--metric", "nsdr")
    assert "on 1 track\n" in out
    assert row(out, "   95%") == ["-", "-"]
    assert "no interval for bass, overall: that takes two tracks." in out
    assert "excludes" not in out
    constants("c", [5.0, 6, 7])
    constants("d", [6.0, 6, 8])
    out, _ = run("c", "d", "--metric", "nsdr")
    assert "from so few tracks (3) intervals come out too narrow." in out


def test_missing_scores_are_counted(run):
    constants("a", [5.0, math.nan, *range(12)])
    constants("b", [6.0, 7.0, *range(12)])
    out, _ = run("a", "b", "--metric", "sdr")
    assert "SDR: A has none for bass in 1 track (silent estimate): not compared." in out
    assert "B has none" not in out
    assert row(out, "B - A improved")[:3] == ["1", "of", "13"]


def test_infinite_scores_are_said_and_never_nan(run):
    constants("a", [math.inf, math.inf, math.nan, 5.0, 6.0])
    constants("b", [math.inf, 4.0, math.inf, 6.0, 8.0])
    out, _ = run("a", "b", "--metric", "nsdr", "--tracks")
    assert row(out, "B - A mean") == ["+1.000"] * 2
    assert row(out, "B - A improved")[:3] == ["2", "of", "4"]
    assert "nSDR: B - A is infinite for bass in 1 track, overall in 1 track: in no mean" in out
    assert row(out, titles(2)[1]) == ["-inf"] * 2
    assert row(out, titles(3)[2]) == ["-"] * 2
    assert "nan" not in out
    constants("c", [math.nan])
    constants("d", [math.nan])
    out, _ = run("c", "d", "--metric", "si_sdr", "--tracks")
    assert "nan" not in out
    assert row(out, "B - A mean") == ["-"] * 2


def test_a_lone_source_has_no_sir(run):
    constants("a", [math.inf] * 3)
    constants("b", [math.inf] * 3)
    out, _ = run("a", "b", "--metric", "sir")
    assert row(out, "A median") == ["-"] * 2
    for model in "AB":
        why = "no other source that could interfere"
        assert f"SIR: {model} has none for bass in 3 tracks ({why}): not compared." in out


def test_every_track(run):
    constants("a", [5.0, 6, 7])
    constants("b", [5.5, 5.0, 7])
    out, _ = run("a", "b", "--metric", "nsdr", "--tracks")
    table = out.split("nSDR, B - A, dB ")[1].splitlines()[1:4]
    names = titles(3)
    assert [line.split()[-1] for line in table] == ["-1.000", "+0.000", "+0.500"]
    for line, index in zip(table, (1, 2, 0), strict=True):
        assert line.startswith(names[index])


def test_sources_and_seed(run):
    made(Path("a"))
    tracks = read_results("a").tracks[:3]
    kept(Path("b"), [replace(each, sources={"bass": constant(4)}) for each in tracks])
    out, _ = run("a", "b", "--sources", "bass", "--metric", "sdr")
    assert row(out, "dB") == ["bass", "overall"]
    assert "Tracks that not all results have are left out: 5 of 8 in a." in out
    other, _ = run("a", "b", "--sources", "bass", "--metric", "sdr", "--seed", "5")
    assert "seed 5" in other
    assert row(other, "B - A mean") == row(out, "B - A mean")


@pytest.mark.parametrize("target", ["-", "new/numbers.json"])
def test_json(run, target):
    made(Path("a"))
    made(Path("b"), lift=-1)
    out, err = run("a", "b", "--json", target)
    text = out if target == "-" else Path(target).read_text(encoding="utf-8")
    assert ("B is worse" in err) == (target == "-")
    found = json.loads(text)
    assert [model["folder"] for model in found["models"]] == ["a", "b"]
    assert list(found["metrics"]) == ["nsdr", "sdr"]
    bass = found["metrics"]["nsdr"]["bass"]
    (difference,) = bass["differences"]
    assert difference == {
        "mean": pytest.approx(-1),
        "interval": pytest.approx([-1, -1]),
        "excludes_0": True,
        "tracks": 8,
        "improved": 0,
        "left_out": 0,
        "infinite": 0,
    }
    assert len(bass["scores"]) == 2
    assert len(bass["scores"][0]) == len(found["tracks"]) == 8


def test_a_report_of_all(run, monkeypatch):
    given = []

    def write(results, path, *, others=()):
        given.extend([results.folder, path, *(each.folder for each in others)])

    monkeypatch.setattr("demucs_lightning.evaluation.report.write_report", write)
    for name in "abc":
        made(Path(name))
    out, _ = run("a", "b", "c", "--report", "all.html")
    assert [str(each) for each in given] == ["a", "all.html", "b", "c"]
    assert out.endswith("The report: all.html\n")


def test_a_report_is_a_page(run):
    made(Path("a"), name="first")
    made(Path("b"), name="second")
    run("a", "b", "--report", "all.html")
    page = Path("all.html").read_text(encoding="utf-8")
    assert "first" in page
    assert "second" in page


def test_bad_input(refused):
    made(Path("a"))
    Path("empty").mkdir()
    assert (
        refused("a", "empty") == "empty holds no results of an evaluation: no settings.json in it."
    )
    assert refused("a", "nowhere").startswith("nowhere holds no results")
    assert refused("a", "./a") == "a is given twice: name another folder."
    constants("other", [1.0], source="piano")
    assert refused("a", "other").startswith("The results have no source in common: a has drums, ")
    made(Path("b"))
    assert "'tuba' is not in all results" in refused("a", "b", "--sources", "tuba")
    assert "--sources is 'bass,'" in refused("a", "b", "--sources", "bass,")
    assert "--seed is -1" in refused("a", "b", "--seed", "-1")
    path = Path("b", SETTINGS)
    path.write_text(path.read_text(encoding="utf-8").replace("512 taps", "256 taps"))
    assert refused("a", "b").startswith("a and b can't be compared by sdr: they define it as ")
    track_path(Path("a"), titles(1)[0]).write_text("{")
    assert "is damaged" in refused("a", "b")


def test_no_common_track(refused):
    constants("a", [1.0, 2.0])
    kept(Path("b"), [track("another", {"bass": constant(1)})])
    assert refused("a", "b") == (
        "There is nothing to compare in a and b: no tracks are of one name."
    )
    write_track(Path("b"), track(titles(1)[0], {"bass": constant(1)}, seconds=9))
    assert refused("a", "b").endswith(
        "all tracks of the same name differ in length or sample rate."
    )


def test_one_folder_is_not_enough(capsys):
    with pytest.raises(SystemExit) as caught:
        commands.main(["compare", "a"])
    assert caught.value.code == 2
    assert "B" in capsys.readouterr().err


def test_letters():
    assert [letter(model) for model in (0, 1, 25, 26, 27, 52)] == ["A", "B", "Z", "AA", "AB", "BA"]
