"""Folders of tracks on disk, and the index of what they hold.

A track is a folder `<name>/` with one file a stem (`drums.wav`, ...) and perhaps `mixture.wav`, or
one file `<name>.stem.mp4`. The index keeps rate, length, channels, and the mean and standard
deviation of the mono mixture of every track. It is made in threads, block by block, and cached in
`.demucs_lightning_index.json` (see `cache` for where), each entry under the paths, sizes and
modification times of all files of the track, so a changed track is indexed anew, alone.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from demucs_lightning import audio
from demucs_lightning.data.cache import Recording, places, writable_place

log = logging.getLogger(__name__)

INDEX = ".demucs_lightning_index.json"
INDEX_VERSION = 2
MIXTURE = "mixture"
STEM_MP4 = ".stem.mp4"
STEM_MP4_STREAMS = (MIXTURE, "drums", "bass", "other", "vocals")
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".m4a")  # in order of preference
# Stems of one track in a lossy format may differ by what its encoder padded (seconds).
LOSSY_SLACK = 0.1
LOSSLESS = (".wav", ".flac")
BLOCK = 2**20  # frames looked at in one go
SILENT = 1e-8  # a standard deviation below it is not divided by

Files = Mapping[str, Recording]
Faults = dict[str, Exception]  # what is wrong with a track, by its name


@dataclass(frozen=True)
class Track:
    """One song. `frames` counts samples at `samplerate`, those of the files; `mean` and `std` are
    of the mono mixture, `std` is 1 for silence. `files` has each source and the mixture, or None
    where the track lacks it. `folder` is what was indexed."""

    name: str
    folder: Path
    samplerate: int
    frames: int
    mean: float
    std: float
    files: Mapping[str, Recording | None]

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return self.frames / self.samplerate


def find_tracks(folder: Path, suffixes: Sequence[str] = (*SUFFIXES, STEM_MP4)) -> dict[str, Files]:
    """The audio files below `folder` by track and stem, sorted; a track's name is its path in it.

    A folder without folders in it is a track even if it holds no audio, so that it is not passed
    over in silence. Hidden files and folders are. Of two files for one stem, the first suffix wins.
    """
    found: dict[str, Files] = {}
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = [Path(place, name) for name in names if not name.startswith(".")]
        bundles = [file for file in files if STEM_MP4 in suffixes and file.name.endswith(STEM_MP4)]
        for file in bundles:
            name = file.relative_to(folder).as_posix().removesuffix(STEM_MP4)
            found[name] = {s: Recording(file, number) for number, s in enumerate(STEM_MP4_STREAMS)}
        stems: dict[str, Recording] = {}
        for suffix in reversed(suffixes):
            stems |= {file.stem: Recording(file) for file in files if file.suffix.lower() == suffix}
        if Path(place) != folder and (stems or not (folders or bundles)):
            found[Path(place).relative_to(folder).as_posix()] = stems
    return dict(sorted(found.items()))


def require_stems(found: Mapping[str, Files], sources: Sequence[str], *, folder: Path) -> None:
    """Raise ValueError for a source that no track below `folder` has, naming those there are."""
    seen = sorted({stem for files in found.values() for stem in files} - {MIXTURE})
    for source in sources:
        if source not in seen:
            raise ValueError(
                f"No track in {folder} has a stem {source!r}: the stems there are "
                f"{', '.join(seen) or 'none'}."
            )


def index_tracks(
    folder: Path,
    found: Mapping[str, Files],
    sources: Sequence[str],
    *,
    faults: Faults | None = None,
) -> list[Track]:
    """Look into the tracks of `find_tracks`, or into the cached index for those that it knows.

    Raises ValueError or FileNotFoundError naming the file for a stem that is truncated, empty, no
    audio, or holds NaN, and for stems of one track that differ in rate or length. With ``faults``
    these errors go there, by the name of the track, which is left out.
    """
    kept = {name: _kept(files, sources) for name, files in found.items()}
    cached = [_load(path) for path in places(folder, INDEX)]
    entries: dict[str, Any] = {}
    for name, files in kept.items():
        prints = {stem: file.fingerprint(folder) for stem, file in files.items()}
        known = (index.get(_key(name, sources)) for index in cached)
        hit = next((entry for entry in known if _matches(entry, prints)), None)
        entries[name] = hit or {"files": prints}
    fresh = [name for name, entry in entries.items() if "frames" not in entry]
    if fresh:
        log.info("Indexing %d of %d tracks in %s", len(fresh), len(found), folder)
        inspect = _inspect if faults is None else _inspected
        facts = parallel(inspect, [kept[name] for name in fresh], title="Index")
        for name, measured in zip(fresh, facts, strict=True):
            if faults is not None and isinstance(measured, Exception):
                faults[name] = measured
                del entries[name]
            else:
                entries[name] |= measured
        known = {_key(name, sources): entries[name] for name in fresh if name in entries}
        _save(folder, known)
    return [_track(name, folder, entry, kept[name], sources) for name, entry in entries.items()]


def parallel(function: Callable, items: Sequence, *, title: str) -> Iterator:
    """The results of `function` over `items`, in order, made in threads under a progress bar."""
    workers = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        yield from tqdm(pool.map(function, items), desc=title, total=len(items), delay=0.5)


def _kept(files: Files, sources: Sequence[str]) -> Files:
    return {stem: files[stem] for stem in (MIXTURE, *sources) if stem in files}


def _key(name: str, sources: Sequence[str]) -> str:
    return f"{name} [{', '.join(sources)}]"


def _track(name: str, folder: Path, entry: dict, files: Files, sources: Sequence[str]) -> Track:
    facts = {key: entry[key] for key in ("samplerate", "frames", "mean", "std")}
    present = {stem: files.get(stem) for stem in (MIXTURE, *sources)}
    return Track(name=name, folder=folder, files=present, **facts)


def _matches(entry: Any, prints: dict) -> bool:
    numbers = ("samplerate", "frames", "mean", "std")
    return (
        isinstance(entry, dict)
        and entry.get("files") == prints
        and all(isinstance(entry.get(key), int | float) for key in numbers)
    )


def _load(path: Path) -> dict[str, Any]:
    """The entries of an index file; none if it is not there, of another version, or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s is unreadable (%s) and is made anew", path, error)
        return {}
    if not isinstance(content, dict) or content.get("version") != INDEX_VERSION:
        return {}
    tracks = content.get("tracks")
    return tracks if isinstance(tracks, dict) else {}


def _save(folder: Path, entries: dict[str, Any]) -> None:
    path = writable_place(folder, INDEX)
    content = {"version": INDEX_VERSION, "tracks": _load(path) | entries}
    try:
        with audio.replacing(path) as partial:
            partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    except OSError as error:
        log.warning("The index of %s can't be kept, and is made anew next time: %s", folder, error)


def _inspected(files: Files) -> dict[str, Any] | Exception:
    try:
        return _inspect(files)
    except (ValueError, OSError) as error:
        return error


def _inspect(files: Files) -> dict[str, Any]:
    """Check the stems of a track against each other, and measure its mixture."""
    infos = {stem: audio.info(file.path, file.stream) for stem, file in files.items()}
    (first, expected), *others = infos.items()
    for stem, found in others:
        file, model = files[stem], files[first]
        if found.samplerate != expected.samplerate:
            raise ValueError(
                f"{file} has a rate of {found.samplerate} Hz and {model.path.name} one of "
                f"{expected.samplerate} Hz: the stems of a track must agree."
            )
        lossless = {file.path.suffix.lower(), model.path.suffix.lower()} <= set(LOSSLESS)
        slack = 0 if lossless else LOSSY_SLACK * found.samplerate
        if abs(found.frames - expected.frames) > slack:
            raise ValueError(
                f"{file} has {found.frames} samples and {model.path.name} has "
                f"{expected.frames}: the stems of a track must agree."
            )
    for file in files.values():
        _require_finite(file)
    mean, std = _statistics([files[MIXTURE]] if MIXTURE in files else list(files.values()))
    frames = min(found.frames for found in infos.values())
    return {"samplerate": expected.samplerate, "frames": frames, "mean": mean, "std": std}


def _require_finite(file: Recording) -> None:
    """Raise ValueError if a WAV of floats holds NaN: one that is mapped is not looked at later."""
    samples = audio.memory_map(file.path)
    if samples is None or samples.dtype.kind != "f":
        return
    for start in range(0, len(samples), BLOCK):
        if not np.isfinite(samples[start : start + BLOCK]).all():
            raise _unusable(file)


def _unusable(*files: Recording) -> ValueError:
    names = ", ".join(map(str, files))
    return ValueError(f"NaN or infinite values in {names}: it is no usable recording.")


def _statistics(files: Sequence[Recording]) -> tuple[float, float]:
    """Mean and standard deviation of the sum of `files`, downmixed to mono, in float64 blocks."""
    count, total, squares = 0, 0.0, 0.0
    streams = (audio.blocks(file.path, stream=file.stream) for file in files)
    for blocks in zip(*streams, strict=False):  # lossy stems may differ in length a little
        length = min(block.shape[-1] for block in blocks)
        mono = torch.stack([block[:, :length].mean(0) for block in blocks]).double().sum(0)
        count += length
        total += float(mono.sum())
        squares += float(mono.square().sum())
    mean = total / count
    std = math.sqrt(max(squares - count * mean**2, 0) / max(count - 1, 1))
    if not math.isfinite(std):
        raise _unusable(*files)
    return mean, std if std > SILENT else 1.0
