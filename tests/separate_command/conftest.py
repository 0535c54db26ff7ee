"""The command in an empty folder, songs for it, and models that cost little or nothing."""

from pathlib import Path
from typing import Any

import pytest

from demucs_lightning import audio, commands, pretrained
from tests.separator.models import RATE, Shares, noise, small_file


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    return small_file(tmp_path_factory.mktemp("models") / "small.th")


@pytest.fixture
def songs(tmp_path) -> Path:
    folder = tmp_path / "songs"
    (folder / "disc 1" / "ä 音🎵").mkdir(parents=True)
    for number, name in enumerate(["a.wav", "disc 1/ä 音🎵/b.flac", "disc 1/c.mp3"]):
        samples = noise(2, 9000, number).clamp(-1, 1)
        audio.write(folder / name, samples, samplerate=RATE)
    (folder / "notes.txt").write_text("no song")
    (folder / ".d.wav").write_text("hidden")
    return folder


@pytest.fixture
def cheap(monkeypatch):
    """The model `htdemucs` is one that costs nothing."""
    model = Shares()
    monkeypatch.setattr(pretrained, "load_model", lambda *_, **__: model)
    return model


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder: its status, stdout and stderr."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def separate(*arguments) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as caught:
            commands.main(["separate", "-d", "cpu", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return caught.value.code, out, err

    return separate
