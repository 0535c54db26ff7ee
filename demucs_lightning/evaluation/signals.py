"""The audio of a track for scoring: references, estimates and the mixture, read piece by piece.

What can be mapped is read from its file. The rest is decoded once, into memory, or into a nameless
file on disk where it would take too much of it.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from demucs_lightning import audio
from demucs_lightning.audio.decoding import resized
from demucs_lightning.data.cache import Recording
from demucs_lightning.data.disk import check_space
from demucs_lightning.data.tracks import MIXTURE, Track
from demucs_lightning.evaluation.results import Excerpt

IN_MEMORY = 2**29  # bytes of the stems of a track: six minutes of four in stereo
FULL_SCALE = 2**15
STEP = 0.25  # seconds: where an excerpt may start

Reader = Callable[[int, int], Tensor]  # (start, stop) in samples -> (C, stop - start)


class Buffer:
    """Stems (S, C, T) float32, at first silent: in memory, or on disk if there are many."""

    def __init__(self, sources: int, channels: int, frames: int) -> None:
        shape = (sources, channels, frames)
        size = 4 * sources * channels * frames
        if size > IN_MEMORY:
            check_space(Path(tempfile.gettempdir()), size, purpose="hold the stems of a long track")
            with tempfile.TemporaryFile() as file:
                self._samples = np.memmap(file, np.float32, "w+", shape=shape)
        else:
            self._samples = np.zeros(shape, np.float32)
        self.frames = frames

    def fill(self, blocks: Iterable[Tensor], *, source: int | None = None) -> int:
        """Take blocks (S, C, t), or (C, t) of one source, without what is beyond the end; how many
        samples came."""
        samples, done = self._samples if source is None else self._samples[source], 0
        for block in blocks:
            kept = block[..., : max(0, self.frames - done)].numpy()
            samples[..., done : done + kept.shape[-1]] = kept
            done += block.shape[-1]
        return done

    def read(self, start: int, stop: int) -> Tensor:
        """(S, C, stop - start)."""
        return torch.from_numpy(np.array(self._samples[..., start:stop]))


class References:
    """The sources of a track, each (C, T) with the channels of the mixture; silent ones that the
    track lacks."""

    def __init__(self, track: Track, sources: Sequence[str], channels: int) -> None:
        self._readers = [
            _reader(track.files.get(source), channels, track.frames) for source in sources
        ]

    def read(self, start: int, stop: int) -> Tensor:
        """(S, C, stop - start)."""
        return torch.stack([reader(start, stop) for reader in self._readers])


class Mixture:
    """A track's own mixture, or else the sum of its stems, as a `Source` of a Separator: iterating
    gives blocks (C, t) from its start, and as many samples as the track has."""

    def __init__(self, track: Track) -> None:
        own = track.files.get(MIXTURE)
        files = [own] if own else [file for file in track.files.values() if file]
        self._track, self._files = track, files
        self.samplerate = track.samplerate
        self.channels = max(
            audio.info(file.path, file.stream, count=False).channels for file in files
        )

    def __iter__(self) -> Iterator[Tensor]:
        streams = [
            audio.stream(file.path, stream=file.stream, channels=self.channels)
            for file in self._files
        ]
        left = self._track.frames
        for blocks in zip(*streams, strict=False):  # lossy stems may differ in length a little
            size = min(left, *(block.shape[-1] for block in blocks))
            if size:
                yield torch.stack([block[:, :size] for block in blocks]).sum(0)
            left -= size


def loudest(mixture: Mixture, frames: int, *, seconds: float) -> Excerpt:
    """Where the ``seconds`` of the greatest energy are; all where there are no more."""
    step = max(1, int(STEP * mixture.samplerate))
    energies = [block.double().square().sum() for block in resized(iter(mixture), step)]
    count = min(len(energies), round(seconds / STEP))
    sums = torch.stack(energies).unfold(0, count, 1).sum(1)
    start = int(sums.argmax()) * step
    rest = (frames - start) / mixture.samplerate
    return Excerpt(start / mixture.samplerate, min(seconds, rest))


def excerpt_of(mixture: Mixture, start: int, stop: int) -> Tensor:
    """Samples (C, stop - start) of the mixture."""
    parts, done = [], 0
    for block in mixture:
        first = max(0, start - done)
        if first < block.shape[-1] and done < stop:
            parts.append(block[:, first : stop - done])
        done += block.shape[-1]
        if done >= stop:
            break
    return torch.cat(parts, dim=-1)


def _reader(recording: Recording | None, channels: int, frames: int) -> Reader:
    if recording is None:
        return lambda start, stop: torch.zeros(channels, stop - start)
    mapped = audio.memory_map(recording.path)
    if mapped is None:
        buffer = Buffer(1, channels, frames)
        found = audio.stream(recording.path, stream=recording.stream, channels=channels)
        buffer.fill(found, source=0)
        return lambda start, stop: buffer.read(start, stop)[0]

    def read(start: int, stop: int) -> Tensor:
        samples = torch.from_numpy(mapped[start:stop].copy()).T
        floats = samples / FULL_SCALE if samples.dtype == torch.int16 else samples
        return audio.convert_channels(floats, channels)

    return read
