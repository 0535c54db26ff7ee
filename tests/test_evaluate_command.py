"""``demucs-lightning evaluate``, as a user types it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from demucs_lightning.commands import evaluate
from demucs_lightning.evaluation import report
from demucs_lightning.evaluation.estimates import Separated
from demucs_lightning.evaluation.results import METRICS, read_results
from tests.evaluation.songs import SOURCES, make_set, make_stems, model_file, write
from tests.separator.models import RATE

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with songs and a model, where commands start."""
    monkeypatch.chdir(tmp_path)
    make_set(tmp_path / "songs")
    model_file(tmp_path / "mine.safetensors")
    return tmp_path


@pytest.fixture
def run(here, capsys, caplog):
    """Runs the command: its exit code, what it says, and what it complains of."""

    def call(*arguments, report=False):
        line = [*map(str, arguments), "--data", "songs", "-d", "cpu"]
        with pytest.raises(SystemExit) as stop:
            evaluate.main([*line, *([] if report else ["--no-report"])])
        said = capsys.readouterr()
        warnings = "".join(f"{record.getMessage()}\n" for record in caplog.records)
        return stop.value.code, said.out, said.err + warnings

    return call


def started(folder, *arguments, out="results"):
    """The command in a process of its own."""
    line = [sys.executable, "-m", "demucs_lightning.commands.evaluate", "mine.safetensors"]
    line += ["--data", "songs", "-d", "cpu", "-o", out, "--no-report", *arguments]
    paths = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        line, cwd=folder, env={**os.environ, **paths}, stdout=subprocess.PIPE, text=True
    )


def test_a_model_is_scored_into_a_folder_of_its_own(run, here):
    code, out, _ = run("mine.safetensors", "--json", "table.json")
    assert code == 0
    (folder,) = (here / "results" / "songs-test").iterdir()
    found = read_results(folder)
    digest = found.settings["model"]["hash"]
    assert folder.name == f"mine-{digest[:8]}"
    assert found.settings["model"] | {"hash": 0} == {
        "name": "mine",
        "klass": "Demucs",
        "hash": 0,
        "sources": list(SOURCES),
    }
    assert found.settings["separation"] == {
        "shifts": 1,
        "overlap": 0.25,
        "segment": 2.0,
        "precision": "fp32",
        "seed": 42,
    }
    lines = out.splitlines()
    assert re.match(r"mine on CPU \(1 thread\) in fp32 · songs test: 2 tracks · ", lines[0])
    assert re.match(r"1/2 test/Bob - Two: nSDR -?\d+\.\d\d dB, SDR .* x real time", lines[1])
    summary = json.loads((here / "table.json").read_text())
    for metric, kind in (("nsdr", "median"), ("sdr", "mean")):
        shown = next(line for line in lines if line.lower().startswith(f"{metric} {kind}"))
        values = [summary[kind][metric][name] for name in (*SOURCES, "overall")]
        assert shown.split()[2:] == [f"{value:.2f}" for value in values]
    assert "Music Demixing Challenge 2021" in out
    assert "BSS Eval v4" in out
    assert summary["failed"] == {}
    assert summary["tracks"] == 2


def test_a_second_call_computes_nothing_and_prints_the_table(run):
    run("mine.safetensors", "-o", "out")
    code, out, _ = run("mine.safetensors", "-o", "out")
    assert code == 0
    assert "2 tracks, 2 scored already" in out
    assert "real time" not in out
    assert "SDR median" in out


def test_a_folder_of_stems_is_scored(run, here):
    make_stems(here / "theirs", here / "songs")
    code, out, err = run("theirs", "--shifts", "3")
    assert code == 0
    assert "theirs is a folder of stems: --shifts has no effect." in err
    found = read_results(here / "results" / "songs-test" / "theirs")
    assert found.settings["separation"] is None
    assert found.settings["model"]["hash"] is None
    assert found.column("bass", "nsdr").keys() == {"test/Ann - One", "test/Bob - Two"}
    assert all(value > 15 for value in found.column("bass", "nsdr").values())


def test_json_on_stdout_is_all_that_is_there(run):
    code, out, err = run("mine.safetensors", "--json", "-")
    assert code == 0
    assert json.loads(out)["tracks"] == 2
    assert "SDR median" in err


def test_parts_are_scored_and_the_last_one_has_the_table(run):
    line = ["mine.safetensors", "-o", "out"]
    code, out, _ = run(*line, "--shard", "1/2")
    assert code == 0
    command = re.search("in out, `(.*)` prints the table and computes nothing anew", out)
    assert "1 of 2 tracks is scored, and other processes have 1 to score: once all " in out
    assert "SDR median" not in out
    code, out, _ = run(*line, "--shard", "2/2", "--json", "table.json")
    assert "SDR median" in out
    assert command is not None
    assert command[1].split()[:3] == ["demucs-lightning", "evaluate", "mine.safetensors"]
    assert "--shard" not in command[1]
    with pytest.raises(SystemExit):
        evaluate.main(command[1].split()[2:])


def test_what_is_known_is_written_while_others_are_at_work(run, here):
    code, out, _ = run("mine.safetensors", "--shard=1/2", "--json", "table.json")
    assert code == 0
    assert "--shard" not in out
    found = json.loads((here / "table.json").read_text())
    assert found["complete"] is False
    counts = {"tracks": 2, "wanted": 2, "scored": 1, "failed": 0, "left": 1, "busy": 0}
    assert found["counts"] == counts
    assert [row["track"] for row in found["scores"]] == ["test/Ann - One"]


def test_one_file_has_all_that_a_paper_needs(run, here):
    write(here / "songs" / "test" / "Ann - One", {"bass": np.zeros(2 * RATE)})
    run("mine.safetensors", "--json", "table.json", "-o", "out")
    text = (here / "table.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    assert found["complete"] is True
    ann, bob = found["scores"]
    (track, other) = read_results(here / "out").tracks
    for source in SOURCES:
        row = bob["sources"][source]
        assert {metric: row[metric] for metric in METRICS} == {
            metric: other.score(source, metric) for metric in METRICS
        }
        assert (row["silent"], row["windows"], row["windows_without_score"]) == (False, 3, 0)
        assert row["reasons"] == {}
    bass = ann["sources"]["bass"]
    assert (bass["silent"], bass["nsdr"], bass["sdr"]) == (True, None, None)
    assert bass["reasons"]["nsdr"] == "silent reference"
    assert ann["sources"]["vocals"]["reasons"]["sdr"] == "silent reference of another source"
    assert ann["sources"]["vocals"]["windows_without_score"] == 2
    assert ann["machine"] == track.machine
    assert found["versions"].keys() == {"demucs_lightning", "torch", "python"}
    assert found["separation"]["seed"] == 42
    assert "BSS Eval v4" in found["metrics"]["sdr"]
    assert found["unscored"]["nsdr"] == {"bass": 1}


def test_a_lone_source_has_no_sir_which_is_said(run, here):
    make_stems(here / "theirs", here / "songs")
    for path in (here / "theirs").rglob("bass.wav"):
        path.unlink()
    code, out, err = run("theirs", "--json", "table.json")
    assert code == 0
    assert "Only vocals will be scored: songs/test has" not in err
    assert "Only vocals will be scored: songs alone has bass." in err
    why = "no other source that could interfere"
    assert f"vocals in 2 tracks ({why})." in out
    row = json.loads((here / "table.json").read_text())["scores"][0]["sources"]["vocals"]
    assert (row["sir"], row["reasons"]) == (None, {"sir": why})


def test_folders_of_tracks_of_one_name_have_results_of_their_own(run, here, capsys):
    run("mine.safetensors")
    make_set(here / "b" / "songs", {"Zoe - New": 1.0})
    with pytest.raises(SystemExit):
        evaluate.main(["mine.safetensors", "--data", "b/songs", "-d", "cpu", "--no-report"])
    first, second = sorted(path.name for path in (here / "results").iterdir())
    assert re.fullmatch("songs-[0-9a-f]{6}-test", first)
    assert second == "songs-test"
    assert not list(here.rglob("*.old"))
    assert len(list((here / "results" / "songs-test").glob("*/tracks/*.json"))) == 2


def test_some_tracks_are_said_to_be_some(run):
    code, out, _ = run("mine.safetensors", "--tracks", "ann*")
    assert code == 0
    assert "songs test, 1 of 2 tracks" in out


def test_a_track_that_fails_is_told_and_the_others_are_scored(run, here, monkeypatch):
    def estimates(self, track, *rest):
        if track.name == "test/Ann - One":
            raise OSError(5, "Input/output error", "mixture.wav")
        return separate(self, track, *rest)

    separate = Separated.estimates
    monkeypatch.setattr(Separated, "estimates", estimates)
    code, out, err = run("mine.safetensors", "--json", "table.json")
    assert code == 1
    assert err.count("Input/output error") == 1
    assert "failed: test/Ann - One: Input/output error: mixture.wav." in err
    assert "error: 1 track could not be scored: the same command tries it again." in err
    assert re.search("[12]/2 test/Ann - One: failed", out)
    assert "songs test, 1 of 2 tracks" in out
    assert list(json.loads((here / "table.json").read_text())["failed"]) == ["test/Ann - One"]


def test_ctrl_c_leaves_what_is_scored_and_no_claims(run, here, monkeypatch):
    def estimates(self, track, *rest):
        if track.name == "test/Ann - One":
            raise KeyboardInterrupt
        return separate(self, track, *rest)

    separate = Separated.estimates
    with monkeypatch.context() as patch:
        patch.setattr(Separated, "estimates", estimates)
        code, out, _ = run("mine.safetensors", "-o", "out")
    assert code == 130
    assert "Interrupted: the same command goes on with the tracks that are left." in out
    assert not (here / "out" / "claims").exists()
    assert [track.track for track in read_results(here / "out").tracks] == ["test/Bob - Two"]
    code, out, _ = run("mine.safetensors", "-o", "out")
    assert code == 0
    assert "2 tracks, 1 scored already" in out


def test_a_report_that_fails_loses_nothing(run, here, monkeypatch):
    def fails(*_):
        raise ValueError("no ink")

    monkeypatch.setattr(report, "write_report", fails)
    code, out, err = run("mine.safetensors", "-o", "out", report=True)
    assert code == 0
    assert "SDR median" in out
    assert "report.html could not be written (no ink): the results are complete." in err
    assert len(read_results(here / "out").tracks) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.ckpt"], "nowhere.ckpt does not exist"),
        (["htdemuks"], "There is no model 'htdemuks': did you mean htdemucs"),
        (["mine.safetensors", "--shard", "3/2"], "--shard is 3/2: it must be I/N"),
        (["mine.safetensors", "--tracks", "Zoe"], "tracks has 'Zoe', and no track is called that"),
        (["mine.safetensors", "--segment", "-1"], "segment is -1"),
        (["mine.safetensors", "-j", "-1"], "--jobs is -1"),
        (["mine.safetensors", "--dset", "musdb18hq"], "No track in songs/test has a stem 'drums'"),
        (["mine.safetensors", "--settings", "no.yaml"], "no.yaml does not exist"),
        (["songs/test/Ann - One"], "holds no stems"),
        (["mine.safetensors", "-o", "mine.safetensors"], "mine.safetensors"),
    ],
)
def test_mistakes_end_in_one_sentence(run, arguments, said):
    code, out, err = run(*arguments)
    assert code == 1
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_other_settings_in_the_same_folder_are_refused(run):
    run("mine.safetensors", "-o", "out")
    code, _, err = run("mine.safetensors", "-o", "out", "--shifts", "2", "--overlap", "0.5")
    assert code == 1
    assert (
        "error: out holds results of other settings (separation.shifts 1 there, 2 here; "
        "separation.overlap 0.25 there, 0.5 here): name another folder, or remove this one."
    ) in err


def test_two_processes_share_the_tracks(here):
    make_set(here / "songs", {f"Song {number}": 1.0 for number in range(8)})
    both = [started(here), started(here)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    lines = [re.findall(r"^\d+/10 (.*): nSDR", text, re.MULTILINE) for text in said]
    assert len(lines[0]) + len(lines[1]) == 10
    assert len({*lines[0], *lines[1]}) == 10
    assert any("SDR median" in text for text in said)
    assert len(read_results(here / "results").tracks) == 10


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL on Windows")
def test_a_killed_run_goes_on_where_it_stopped(here, run):
    make_set(here / "songs", {f"Song {number}": 1.0 for number in range(20)})
    process = started(here)
    tracks = here / "results" / "tracks"
    deadline = time.monotonic() + 100
    while not list(tracks.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {path.name: path.stat().st_mtime_ns for path in tracks.glob("*.json")}
    assert 0 < len(before) < 22
    assert list((here / "results" / "claims").iterdir())  # what it worked on
    code, out, _ = run("mine.safetensors", "-o", "results")
    assert code == 0
    assert f"{len(before)} scored already" in out
    after = {path.name: path.stat().st_mtime_ns for path in tracks.glob("*.json")}
    assert len(after) == 22
    assert {name: after[name] for name in before} == before
