"""Extracts of tracks: what a model trains on, and whole tracks to validate and test on.

The training loader does one thing per stem: it copies the extract out of a memory map. Files that
can't be mapped, or are of another rate or channel count, are converted once when the data set is
made (see `cache`), so no extract waits for a decoder or a resampler. Copying leaves the samples in
the file's order, interleaved, because taking channels apart costs four times the copy: `stems` is
a (S, C, T) view of (S, T, C) memory, `collate` keeps it so, and `normalized`, called on the batch
and its device, makes it contiguous.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from demucs_lightning import audio
from demucs_lightning.data.cache import Recording, as_wav, is_mappable
from demucs_lightning.data.tracks import MIXTURE, Track, parallel

FULL_SCALE = 2**15

Item = dict[str, Any]


class Extracts(Dataset[Item]):
    """Extracts of `segment` seconds every `shift` seconds (default: `segment`) of every track.

    A track gives ceil((duration - segment) / shift) + 1 of them, one if it is shorter. Extract k
    starts at sample int(rate * shift * k) of the file, is converted to `samplerate` and `channels`,
    and cut or padded with zeros to T = int(segment * samplerate). Items are `stems` (S, C, T), not
    normalised, in the order of `sources`, silent where a track lacks one; `frames`, the samples
    in front of the padding; `mean` and `std` of the track's mono mixture (0 and 1 without
    `normalize`); and `track`, its name. `dtype` is that of all stems: int16 if every file has it,
    else float32.

    Without `segment` an item is a whole track: `mixture` (C, T) and `stems` (S, C, T) float32,
    not normalised. Where a track has no mixture of its own, the sum of its stems is taken.

    Raises ValueError if every track is shorter than `segment`, or a file can't be converted.
    """

    def __init__(  # noqa: PLR0913
        self,
        tracks: Sequence[Track],
        sources: Sequence[str],
        *,
        segment: float | None = None,
        shift: float | None = None,
        normalize: bool = True,
        samplerate: int = 44100,
        channels: int = 2,
    ) -> None:
        self.tracks = list(tracks)
        self.sources = list(sources)
        self.segment = segment
        self.shift = segment if shift is None else shift
        self.normalize = normalize
        self.samplerate = samplerate
        self.channels = channels
        self._check()
        self._ends = list(accumulate(self._count(track) for track in self.tracks))
        self._paths = self._prepare()
        self._maps: dict[Path, np.ndarray] = {}
        files = {path for paths in self._paths for path in paths.values() if path}
        integer = all(self._map(path).dtype == np.int16 for path in files)
        self.dtype = torch.int16 if integer else torch.float32

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Item:
        if self.segment is None:
            return self._whole(self.tracks[index], self._paths[index])
        (stems,) = self._empty(1)
        about = self._fill(stems.numpy(), index)
        return {"stems": stems.transpose(1, 2), **about}

    def batch(self, indices: Sequence[int], *, pin: bool = False) -> Item:
        """Extracts as `collate` puts them together, each copied once: `stems` (B, S, C, T); with
        `pin`, into pinned memory."""
        stems = self._empty(len(indices), pin=pin)
        outs = zip(stems.numpy(), indices, strict=True)
        items = [self._fill(out, index) for out, index in outs]
        return default_collate(items) | {"stems": stems.transpose(2, 3)}

    def _empty(self, count: int, *, pin: bool = False) -> Tensor:
        """Room for extracts as they lie in the files: (count, S, T, C)."""
        length = int((self.segment or 0) * self.samplerate)
        shape = (count, len(self.sources), length, self.channels)
        if pin:
            return torch.empty(shape, dtype=self.dtype, pin_memory=True)
        dtype = np.int16 if self.dtype == torch.int16 else np.float32
        # numpy asks for huge pages, torch does not: 1.4 times as fast for 8 MB
        return torch.from_numpy(np.empty(shape, dtype))

    def _fill(self, stems: np.ndarray, index: int) -> Item:
        """Copy extract `index` to `stems` (S, T, C); what else there is to say about it."""
        index = range(len(self))[index]
        number = bisect_right(self._ends, index)
        track, paths = self.tracks[number], [self._paths[number][name] for name in self.sources]
        first = index - self._ends[number - 1] if number else index
        start = int(track.samplerate * (self.shift or 0) * first)
        start = round(start * self.samplerate / track.samplerate)
        self._copy(stems, paths, start)
        frames = min(max(self._length(paths) - start, 0), stems.shape[1])
        return {"frames": frames, **self._about(track)}

    def _about(self, track: Track) -> Item:
        mean, std = (track.mean, track.std) if self.normalize else (0.0, 1.0)
        return {"mean": mean, "std": std, "track": track.name}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}

    def _check(self) -> None:
        if not self.sources or len(set(self.sources)) < len(self.sources):
            raise ValueError(f"sources must be different names, at least one, not {self.sources}.")
        for name, seconds in (("segment", self.segment), ("shift", self.shift)):
            if seconds is not None and seconds <= 0:
                raise ValueError(f"{name} must be more than 0 seconds, not {seconds}.")
        if not self.tracks:
            raise ValueError("A data set needs at least one track.")
        longest = max(self.tracks, key=lambda track: track.duration)
        if self.segment is not None and longest.duration < self.segment:
            raise ValueError(
                f"segment={self.segment} is longer than every track: the longest, "
                f"{longest.name!r}, has {longest.duration:.2f} seconds."
            )

    def _count(self, track: Track) -> int:
        if self.segment is None or self.shift is None or track.duration < self.segment:
            return 1
        return math.ceil((track.duration - self.segment) / self.shift) + 1

    def _prepare(self) -> list[dict[str, Path | None]]:
        """The WAV to map for each stem of each track, and for the mixture where it is needed."""
        form = {"samplerate": self.samplerate, "channels": self.channels}
        wanted = self.sources if self.segment else [MIXTURE, *self.sources]
        slots = [
            (number, stem, recording)
            for number, track in enumerate(self.tracks)
            for stem in wanted
            if (recording := track.files[stem])
        ]
        paths: list[dict[str, Path | None]] = [dict.fromkeys(wanted) for _ in self.tracks]
        foreign = []
        for number, stem, recording in slots:
            if is_mappable(recording, **form):
                paths[number][stem] = recording.path
            else:
                foreign.append((number, stem, recording))

        def convert(slot: tuple[int, str, Recording]) -> Path:
            return as_wav(self.tracks[slot[0]].folder, slot[2], **form)

        converted = parallel(convert, foreign, title="Convert")
        for (number, stem, _), path in zip(foreign, converted, strict=True):
            paths[number][stem] = path
        return paths

    def _map(self, path: Path) -> np.ndarray:
        """Samples (T, C) of a file, mapped once per process."""
        if path not in self._maps:
            samples = audio.memory_map(path)
            assert samples is not None, f"{path} has changed"
            self._maps[path] = samples
        return self._maps[path]

    def _length(self, paths: Sequence[Path | None]) -> int:
        """Samples that all files have; 0 if there are none."""
        return min((len(self._map(path)) for path in paths if path), default=0)

    def _copy(self, stems: np.ndarray, paths: Sequence[Path | None], start: int) -> None:
        """Fill `stems` (S, T, C) from sample `start` of each file on, with zeros behind its end."""
        for stem, path in zip(stems, paths, strict=True):
            extract = self._map(path)[start : start + len(stem)] if path else stem[:0]
            stem[: len(extract)] = extract
            stem[len(extract) :] = 0
            if extract.dtype != stem.dtype:
                stem /= FULL_SCALE

    def _whole(self, track: Track, paths: dict[str, Path | None]) -> Item:
        files = [paths[MIXTURE], *(paths[source] for source in self.sources)]
        samples = np.empty((len(files), self._length(files), self.channels), np.float32)
        for stem, path in zip(samples, files, strict=True):
            self._copy(stem[None], [path], 0)
        whole = torch.from_numpy(samples).transpose(1, 2).contiguous()
        mixture = whole[0] if files[0] else whole[1:].sum(0)
        return {"mixture": mixture, "stems": whole[1:], **self._about(track)}


def _floats(stems: Tensor) -> Tensor:
    return stems / FULL_SCALE if stems.dtype == torch.int16 else stems


def normalized(item: Item) -> Tensor:
    """(stems - mean) / std in float32, contiguous, of an item (S, C, T) or a batch (B, S, C, T).

    What an extract was padded with stays zero: the published code normalises first and pads then.
    """
    stems = _floats(item["stems"])
    mean, std = (_per_item(item[key], stems.device).to(stems) for key in ("mean", "std"))
    scaled = (stems - mean) / std
    if "frames" in item:
        position = torch.arange(stems.shape[-1], device=stems.device)
        scaled = scaled * (position < _per_item(item["frames"], stems.device))
    return scaled.contiguous()


def _per_item(value: Any, device: torch.device) -> Tensor:
    value = torch.as_tensor(value, device=device)
    return value.view(*value.shape, 1, 1, 1)


def collate(items: Sequence[Item]) -> Item:
    """`default_collate` for items with a segment: `stems` (B, S, C, T), still interleaved."""
    batch = default_collate([item | {"stems": item["stems"].transpose(1, 2)} for item in items])
    return batch | {"stems": batch["stems"].transpose(2, 3)}
