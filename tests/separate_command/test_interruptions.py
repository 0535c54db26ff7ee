"""Ctrl-C and SIGTERM: a clean end, and no half-written file."""

import json
import signal
from pathlib import Path

import pytest

from demucs_lightning import commands, pretrained
from demucs_lightning.commands.signals import terminable
from tests.separate_command.places import stems, written
from tests.separator.models import Shares


def test_ctrl_c_while_a_command_is_loaded(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "import_module", interrupted)
    with pytest.raises(SystemExit) as caught:
        commands.main(["separate"])
    assert caught.value.code == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_an_interruption_before_the_first_track(run, songs, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrained, "load_model", interrupted)
    code, _, err = run(songs)
    assert (code, err) == (130, "Interrupted: nothing was written.\n")


def test_a_report_of_one_before_the_first_track(run, songs, monkeypatch):
    def interrupted(*_, **__):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(pretrained, "load_model", interrupted)
    code, out, _ = run(songs / "a.wav", "--json")
    report = json.loads(out)
    assert (code, report["interrupted"], report["complete"]) == (130, True, False)
    (track,) = report["tracks"]
    assert (track["track"], track["status"]) == (str(songs / "a.wav"), "not reached")


def test_a_report_has_all_tracks(run, songs, cheap):
    forward = Shares.forward

    def interrupted(mixture):
        if cheap.calls == 2:
            raise KeyboardInterrupt
        return forward(cheap, mixture)

    cheap.forward = interrupted
    code, out, _ = run(songs, "--json")
    report = json.loads(out)
    assert (code, report["interrupted"], report["complete"]) == (130, True, False)
    status = {Path(each["track"]).name: each["status"] for each in report["tracks"]}
    assert status == {"a.wav": "done", "c.mp3": "interrupted", "b.flac": "not reached"}
    assert len(report["tracks"][0]["files"]) == 4


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminable():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def heeded():
    """What a shell runs in the background ignores SIGINT, and with nohup SIGHUP."""
    plain = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    former = {number: signal.signal(number, handler) for number, handler in plain.items()}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption(run, songs, cheap, how):
    forward = Shares.forward

    def interrupted(mixture):
        if cheap.calls == 4:
            signal.raise_signal(how)
        return forward(cheap, mixture)

    cheap.forward = interrupted
    before = signal.getsignal(signal.SIGTERM)
    code, out, _ = run(songs)
    assert code == 130
    assert "Interrupted: no half-written file is left." in out
    assert "3 tracks: 2 done, 1 not separated." in out
    assert signal.getsignal(signal.SIGTERM) == before
    places = {str(Path(file).parent) for file in written()}
    assert len(places) == 2
    assert written() == set().union(*map(stems, places))
