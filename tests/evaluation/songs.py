"""Small data sets of mono songs of two sources, and what is judged on them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch

from demucs_lightning import pretrained
from demucs_lightning.evaluation.estimates import Separated
from demucs_lightning.evaluation.results import TrackResult
from demucs_lightning.evaluation.run import Watch
from demucs_lightning.pretrained import Package
from tests.separator.models import RATE, SMALL, Shares, small

SOURCES = ("bass", "vocals")
SONGS = {"Ann - One": 2.0, "Bob - Two": 3.0}


def stems(seconds: float, *, seed: int, sources: Sequence[str] = SOURCES) -> dict[str, np.ndarray]:
    """Tones in noise, by source."""
    rng, time = np.random.default_rng(seed), np.arange(int(seconds * RATE)) / RATE
    return {
        name: 0.1 * np.sin(2 * np.pi * 110 * (number + 1) * time)
        + 0.02 * rng.standard_normal(len(time))
        for number, name in enumerate(sources)
    }


def write(folder: Path, signals: Mapping[str, np.ndarray], *, rate: int = RATE) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, samples in signals.items():
        soundfile.write(folder / f"{name}.wav", samples, rate, subtype="FLOAT")


def make_set(root: Path, songs: Mapping[str, float] = SONGS) -> Path:
    """A folder of songs below test/, each with its mixture."""
    for seed, (name, seconds) in enumerate(songs.items()):
        signals = stems(seconds, seed=seed)
        write(root / "test" / name, {**signals, "mixture": np.sum([*signals.values()], axis=0)})
    return root


def make_stems(folder: Path, root: Path, *, gain: float = 0.9) -> Path:
    """Estimates of all songs of a set: each source with some of the mixture in it."""
    for song in sorted((root / "test").iterdir()):
        found = {path.stem: soundfile.read(path)[0] for path in song.glob("*.wav")}
        mixture = found.pop("mixture")
        write(folder / song.name, {n: gain * s + 0.05 * mixture for n, s in found.items()})
    return folder


def shares(gain: float = 0.5, sources: Sequence[str] = SOURCES, **settings) -> Separated:
    """A model that gives each source a share of the mixture."""
    model = Shares([gain] * len(sources), sources, audio_channels=1)
    return Separated(model, name="shares", digest=f"{gain}", device="cpu", **settings)


def model_file(path: Path, seed: int = 0) -> Path:
    kwargs = {"sources": list(SOURCES), "audio_channels": 1, **SMALL}
    state = small(seed, SOURCES, audio_channels=1).state_dict()
    pretrained.write(Package("Demucs", kwargs, state, str(path)), path, half=False)
    return path


class Notes(Watch):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.scored: list[str] = []
        self.others: list[str] = []
        self.faults: list[str] = []

    def done(self, track, result: TrackResult) -> None:
        self.scored.append(result.track)

    def elsewhere(self, track) -> None:
        self.others.append(track.name)

    def failed(self, name: str, reason: str) -> None:
        self.faults.append(reason)


def read(path: Path) -> torch.Tensor:
    return torch.from_numpy(soundfile.read(path, always_2d=True)[0].T)
