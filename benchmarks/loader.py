"""Training extracts per second from files in the page cache, beside a plain soundfile loop.

    python benchmarks/loader.py

The same random extracts of 4 stems x 11 s on both sides, run in turns: first one by one in the
process itself, then in batches of 4 from one worker, which is a thread of this project's training
loader and a process of torch's DataLoader around the loop. Makes and removes its own songs: noise,
12 times 60 seconds, as 16-bit stereo WAV.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from machine import describe
from torch.utils.data import DataLoader, Dataset

from demucs_lightning.data import MusdbHQ
from demucs_lightning.data.loader import read_ahead
from demucs_lightning.data.musdb import SOURCES

SAMPLERATE, SEGMENT, SONGS, SECONDS = 44100, 11, 12, 60
ROUNDS, PER_ROUND, BATCH = 20, 24, 4
WARM_UP = 5  # rounds, in which every page of the songs is touched on both sides


class SoundfileLoop(Dataset):
    """The same extracts, read as the class that MusdbHQ replaces does: floats, then one stack."""

    def __init__(self, folder: Path, extracts: MusdbHQ) -> None:
        per_song = len(extracts) // len(extracts.tracks)
        homes = [folder / "train" / track.name for track in extracts.tracks]
        self.places = [
            ([str(home / f"{source}.wav") for source in extracts.sources], k * SAMPLERATE)
            for home in homes
            for k in range(per_song)
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> torch.Tensor:
        paths, start = self.places[index]
        frames = SEGMENT * SAMPLERATE
        stems = [soundfile.read(p, frames, start, dtype="float32", fill_value=0)[0] for p in paths]
        return torch.stack([torch.from_numpy(stem.T) for stem in stems])


def make_songs(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for song in range(SONGS):
        home = folder / "train" / f"Song {song}"
        home.mkdir(parents=True)
        for source in SOURCES:
            noise = rng.integers(-8000, 8000, size=(SECONDS * SAMPLERATE, 2), dtype=np.int16)
            soundfile.write(home / f"{source}.wav", noise, SAMPLERATE, subtype="PCM_16")


def in_turns(contestants: Sequence[Callable[[Sequence[int]], None]], total: int) -> list[float]:
    """The median examples per second of each; every round gives all of them the same indices."""
    rng = np.random.default_rng(1)
    speeds: list[list[float]] = [[] for _ in contestants]
    for _ in range(ROUNDS + WARM_UP):
        order = rng.integers(0, total, size=PER_ROUND).tolist()
        for speed, run in zip(speeds, contestants, strict=True):
            start = time.perf_counter()
            run(order)
            speed.append(PER_ROUND / (time.perf_counter() - start))
    return [statistics.median(speed[WARM_UP:]) for speed in speeds]


def directly(dataset: Dataset) -> Callable[[Sequence[int]], None]:
    def run(order: Sequence[int]) -> None:
        for index in order:
            dataset[index]

    return run


def through_thread(dataset: MusdbHQ) -> Callable[[Sequence[int]], None]:
    def run(order: Sequence[int]) -> None:
        starts = range(0, len(order), BATCH)
        batches = iter([list(order[start : start + BATCH]) for start in starts])
        for _ in read_ahead(dataset.batch, batches, threads=1):
            pass

    return run


def through_process(dataset: Dataset) -> Callable[[Sequence[int]], None]:
    order: list[int] = []
    loader = DataLoader(
        dataset, batch_size=BATCH, sampler=order, num_workers=1, persistent_workers=True
    )

    def run(wanted: Sequence[int]) -> None:
        order[:] = wanted
        for _ in loader:
            pass

    return run


def main() -> None:
    torch.set_num_threads(1)
    print(describe("cpu", np, soundfile))
    with tempfile.TemporaryDirectory() as folder:
        make_songs(Path(folder))
        extracts = MusdbHQ(folder, segment=SEGMENT, shift=1)
        loop = SoundfileLoop(Path(folder), extracts)
        sides = {
            "dataset[index]": [directly(extracts), directly(loop)],
            "one worker": [through_thread(extracts), through_process(loop)],
        }
        print(f"examples  4 stems x {SEGMENT} s of stereo at {SAMPLERATE} Hz; medians of {ROUNDS}")
        for name, contestants in sides.items():
            ours, theirs = in_turns(contestants, len(extracts))
            print(
                f"{name:<16} {ours:7.1f} examples/s, soundfile loop {theirs:6.1f}, "
                f"ratio {ours / theirs:.1f}"
            )


if __name__ == "__main__":
    main()
