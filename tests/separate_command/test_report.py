"""What is said of the tracks: while they are separated, at the end, and as JSON."""

import json
import logging
import sys
import time
from pathlib import Path

import pytest

from demucs_lightning.commands import progress
from demucs_lightning.commands.progress import shown
from demucs_lightning.commands.separate import Console
from tests.separator.models import FOUR, RATE


def test_a_report(run, songs, cheap):
    (songs / "bad.wav").write_text("RIFF")
    code, out, err = run(songs, "--json")
    found = json.loads(out)
    assert code == 1
    assert not found["complete"]
    assert found["precision"] == "fp32"
    status = {Path(each["track"]).name: each["status"] for each in found["tracks"]}
    assert status == {"a.wav": "done", "bad.wav": "failed", "b.flac": "done", "c.mp3": "done"}
    for each in found["tracks"]:
        if each["status"] == "done":
            assert set(each["files"]) == {*FOUR}
            assert each["seconds"] == pytest.approx(9000 / RATE, abs=0.2)
            assert each["gain"] == 1
        else:
            assert str(songs / "bad.wav") in each["error"]
    assert "3 done, 1 failed" in err


def test_a_report_of_what_ends_the_run(run, songs, cheap):
    code, out, err = run(songs, "--json", "--rate", "fast")
    assert code == 1
    report = json.loads(out)
    assert report["error"] in err
    assert (report["complete"], report["tracks"]) == (False, [])


def test_warnings_are_told_once(capsys):
    console = Console()
    for number in (1, 2, 1):
        console.emit(logging.LogRecord("x", logging.WARNING, "", 0, "%d pieces", (number,), None))
    assert capsys.readouterr().err == "1 pieces\n2 pieces\n"


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_bar_tells_speed_and_time_left(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    clock = Clock()
    with shown("1/1 a.wav", 60, clock=clock) as progress:
        clock.now += 5
        time.sleep(0.11)  # a bar is not drawn more often
        progress(0.25)
        progress(1.0)
    said = capsys.readouterr().err
    assert "1/1 a.wav" in said
    assert "25%" in said
    assert "3.0 x real time" in said


def test_lines_off_a_terminal(capsys):
    clock = Clock()
    with shown("2/3 a.wav", 600, clock=clock) as progress:
        for second in range(1, 201):
            clock.now += 1
            progress(second / 200 if second < 200 else 1.0)
    assert capsys.readouterr().err.splitlines() == [
        "2/3 a.wav: 15%, 3.0 x real time, 02:50 left",
        "2/3 a.wav: 30%, 3.0 x real time, 02:20 left",
        "2/3 a.wav: 45%, 3.0 x real time, 01:50 left",
        "2/3 a.wav: 60%, 3.0 x real time, 01:20 left",
        "2/3 a.wav: 75%, 3.0 x real time, 00:50 left",
        "2/3 a.wav: 90%, 3.0 x real time, 00:20 left",
    ]


def test_no_lines_for_short_tracks_and_no_speed_of_unknown_lengths(capsys):
    clock = Clock()
    with shown("a.wav", 600, clock=clock) as progress:
        for part in (0.0, 0.3, 0.6, 1.0):
            progress(part)
            clock.now += 9
        clock.now += 100
        progress(1.0)
    assert capsys.readouterr().err == ""
    with shown("a.wav", 0, clock=clock) as progress:
        clock.now += 40
        progress(0.0)
        progress(0.5)
    assert capsys.readouterr().err == "a.wav: 50%, 00:40 left\n"


def test_the_command_shows_them(run, songs, cheap, monkeypatch):
    monkeypatch.setattr(progress, "PAUSE", 0)
    code, out, err = run(songs / "a.wav", "--shifts", 0)
    assert code == 0
    assert "a.wav:" not in out.splitlines()[0]
    assert err.startswith("1/1 a.wav: ")
    assert "x real time" in err


def test_why_a_track_failed_is_told_once(run, songs, cheap):
    (songs / "bad.wav").write_text("RIFF")
    (songs / "worse.wav").write_bytes(b"")
    for flags in ([], ["--json"]):
        code, _, err = run(songs, "--overwrite", *flags)
        assert code == 1
        lines = err.splitlines()
        assert [line for line in lines if line.endswith("wav: failed.")] == [
            f"{songs / name}: failed." for name in ("bad.wav", "worse.wav")
        ]
        end = lines.index("failed:")
        assert len(lines) == end + 3
        for name, line in zip(("bad.wav", "worse.wav"), lines[end + 1 :], strict=True):
            assert str(songs / name) in line
        assert err.count("is empty") == 1
    code, _, err = run(songs / "worse.wav")
    assert err == f"error: {songs / 'worse.wav'} is empty (0 bytes): an audio file was expected.\n"
