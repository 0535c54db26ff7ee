"""Songs of noise for the tests of the data sets."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

SOURCES = ("drums", "bass", "other", "vocals")


@pytest.fixture
def song() -> Callable[..., Path]:
    """Write `<folder>/<stem><suffix>` of different noise for each stem; returns the folder."""

    def write(  # noqa: PLR0913
        folder: Path,
        stems: Sequence[str] = SOURCES,
        *,
        frames: int = 4000,
        rate: int = 8000,
        channels: int = 2,
        subtype: str | None = "PCM_16",
        suffix: str = ".wav",
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for number, stem in enumerate(stems):
            rng = np.random.default_rng([number, frames])
            samples = rng.integers(-4000, 5000, (frames, channels), dtype=np.int16)
            soundfile.write(folder / f"{stem}{suffix}", samples / 2**15, rate, subtype=subtype)
        return folder

    return write


@pytest.fixture(autouse=True)
def _users_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
