"""Stems that are there, and those of them that are whole."""

import pytest

from demucs_lightning import audio
from demucs_lightning.separator.present import is_whole
from tests.separator.models import noise

RATES = [8000, 48_000]
SECONDS = 12


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "m4a", "ogg", "opus", "aiff"])
def test_whole_files(tmp_path, suffix, rate):
    file = tmp_path / f"x.{suffix}"
    for frames in (500, SECONDS * rate):
        audio.write(file, noise(1, frames).clamp(-1, 1), samplerate=rate)
        assert is_whole(file, frames / rate)
        assert is_whole(file, 0), "of a track whose length is unknown"
        assert not is_whole(file, frames / rate + 1)
    content = file.read_bytes()
    for part in (0.95, 0.5, 0.01, 0):
        file.write_bytes(content[: int(part * len(content))])
        assert not is_whole(file, SECONDS), part
        assert not is_whole(file, 0), part
