"""Shared fixtures: a tiny data set in the layout of MUSDB18-HQ, and settings that make a run take
seconds.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

RATE = 8000
SOURCES = ("drums", "bass", "other", "vocals")
TRACKS = {
    # The last two are for validation.
    "train": ("Ann - One", "Bob - Two", "Cem - Three", "Leaf - Summerghost", "ANiMAL - Rockshow"),
    "test": ("Dan - Four", "Eve - Five"),
}


def write_track(folder: Path, *, seconds: float, seed: int) -> None:
    """Four stereo stems, noisy tones of different pitch, and the mixture, which is their sum."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE))[:, None] / RATE
    folder.mkdir(parents=True)
    mixture = np.zeros((len(time), 2), dtype=np.int16)
    for number, name in enumerate(SOURCES):
        tone = np.sin(2 * np.pi * 110 * 2**number * time + rng.uniform(0, 6, size=(1, 2)))
        stem = (2000 * tone + 300 * rng.standard_normal(tone.shape)).astype(np.int16)
        soundfile.write(folder / f"{name}.wav", stem, RATE)
        mixture += stem
    soundfile.write(folder / "mixture.wav", mixture, RATE)


@pytest.fixture(scope="session")
def musdb_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("musdb")
    seed = 0
    for part, names in TRACKS.items():
        for name in names:
            write_track(
                root / part / name,
                seconds=12.0 if part == "train" else 3.0,
                seed=(seed := seed + 1),
            )
    return root


@pytest.fixture
def tiny(musdb_root: Path, tmp_path: Path) -> list[str]:
    """Overrides that shrink any run to two steps of a tiny model, written to ``tmp_path/run``."""
    return [
        f"data_root={musdb_root}",
        f"samplerate={RATE}",
        "model.channels=4",
        "data.workers=0",
        "epochs=2",
        "trainer.limit_train_batches=1",
        "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=1",
        "trainer.enable_progress_bar=false",
        "trainer.precision=32",
        f"hydra.run.dir={tmp_path}/run",
    ]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Hydra sets up the logging of a run; take that back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
