"""What a killed process has left is removed, and nothing that is being written."""

import subprocess
import sys

from demucs_lightning import audio
from demucs_lightning.audio import parts
from tests.audio.sounds import noise

KILLED = """
import os, signal, sys
from pathlib import Path
from demucs_lightning.audio.parts import held, partial_name
partial = partial_name(Path(sys.argv[1]))
held(partial)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_leftovers(tmp_path, monkeypatch):
    subprocess.run([sys.executable, "-c", KILLED, tmp_path / "x.wav"], check=False)
    others = {".hidden.part", ".0123abcd-x-1.part", "bass.wav"}
    for name in others:
        (tmp_path / name).write_text("")
    assert len(list(tmp_path.iterdir())) == 4
    with audio.writer(tmp_path / "own.wav", samplerate=8000, channels=2) as file:
        file.write(noise(2, 90))
        parts.remove_leftovers(tmp_path)
        there = {path.name for path in tmp_path.iterdir()}
        assert len(there - others) == 1, "the one that is being written"
        # Even where the process can't be seen, as in another container.
        monkeypatch.setattr(parts, "_is_running", lambda _: False)
        parts.remove_leftovers(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == there
    assert {path.name for path in tmp_path.iterdir()} == {*others, "own.wav"}
    parts.remove_leftovers(tmp_path / "nowhere")
