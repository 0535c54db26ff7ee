"""Ctrl-C and SIGTERM: a clean end, and no half-written file."""

import signal
from pathlib import Path

import pytest

from demucs_lightning import commands, pretrained
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


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
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
