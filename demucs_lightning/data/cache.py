"""What the data code keeps on disk, and where.

A file about a folder of tracks lies in that folder, or, where that is not writable, in the user's
cache folder (`$XDG_CACHE_HOME` or `~/.cache`, under `demucs-lightning/`): never in the folder a
command was started in. Readers look in both, so that an index made beside shared, read-only data
serves everybody.

`as_wav` gives a recording the form that can be mapped into memory. A 16-bit or 32-bit float WAV of
the right rate and channel count has it already; anything else is decoded and converted once into
`.demucs_lightning_cache/`, as 16-bit where that loses nothing (a FLAC of a CD) and as 32-bit floats
otherwise. The copy's name holds a digest of the path, stream, size and modification time of the
original and of the format asked for, so a changed original makes a new copy and drops the old one.
"""

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from demucs_lightning import audio
from demucs_lightning.data import disk

AUDIO_CACHE = ".demucs_lightning_cache"
CACHE_VERSION = 1  # of the copies: raise it when equal arguments would give other samples


@dataclass(frozen=True)
class Recording:
    """An audio stream of a file."""

    path: Path
    stream: int = 0

    def __str__(self) -> str:
        return f"{self.path} (stream {self.stream})" if self.stream else str(self.path)

    def fingerprint(self, folder: Path) -> list[str | int]:
        """What changes when the file does; the path is relative to `folder`."""
        stat = self.path.stat()
        name = self.path.relative_to(folder).as_posix()
        return [name, self.stream, stat.st_size, stat.st_mtime_ns]


def user_cache() -> Path:
    """The cache folder of this program, of this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "demucs-lightning"


def places(folder: Path, name: str) -> list[Path]:
    """The paths under which `name`, a file about `folder`, may lie, in order of preference."""
    home = folder.resolve()
    digest = hashlib.sha256(str(home).encode()).hexdigest()[:16]
    return [folder / name, user_cache() / f"{home.name}-{digest}" / name]


def writable_place(folder: Path, name: str) -> Path:
    """The first of `places` that can be written."""
    beside, users = places(folder, name)
    return beside if _writable(folder) else users


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def is_mappable(recording: Recording, *, samplerate: int, channels: int) -> bool:
    """Whether the file itself can be mapped into memory and is in the format asked for."""
    samples = audio.memory_map(recording.path)
    if samples is None or samples.shape[1] != channels:
        return False
    return audio.info(recording.path).samplerate == samplerate


def _copies(folder: Path, recording: Recording, *, samplerate: int, channels: int) -> list[Path]:
    """Where a converted copy of a recording in `folder` may lie, in order of preference."""
    key = [CACHE_VERSION, *recording.fingerprint(folder), samplerate, channels]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    relative = recording.path.relative_to(folder)
    form = f"{relative.name}.{recording.stream}.{samplerate}Hz.{channels}ch"
    name = relative.with_name(f"{form}.{digest}.wav")
    return [place / name for place in places(folder, AUDIO_CACHE)]


def as_wav(folder: Path, recording: Recording, *, samplerate: int, channels: int) -> Path:
    """A WAV with the audio of `recording` that `audio.memory_map` can map, made where it lacks.

    Raises ValueError naming the file if it can't be decoded, holds NaN, or has channels that don't
    convert; OSError where the copy can't be written.
    """
    beside, users = _copies(folder, recording, samplerate=samplerate, channels=channels)
    for copy in (beside, users):
        if copy.is_file():
            return copy
    samples, rate = audio.read(recording.path, stream=recording.stream)
    if not samples.isfinite().all():
        raise ValueError(f"{recording} holds NaN or infinite values: it is no usable recording.")
    try:
        samples = audio.convert_channels(samples, channels)
    except ValueError as error:
        raise ValueError(f"{recording}: {error}") from error
    samples = audio.resample(samples, old=rate, new=samplerate)
    steps = samples * 2**15
    exact = bool(((steps == steps.round()) & (steps >= -(2**15)) & (steps < 2**15)).all())
    copy = beside if _writable(folder) else users
    try:
        audio.write(copy, samples, samplerate=samplerate, subtype="PCM_16" if exact else "FLOAT")
    except OSError:  # libsndfile does not say that the disk is full
        if copy.parent.is_dir():
            needed = samples.numel() * (2 if exact else 4)
            disk.check_space(copy.parent, needed, purpose=f"convert {recording}")
        raise
    stem = copy.name.rsplit(".", 2)[0]
    for stale in copy.parent.glob(f"{escape(stem)}.*.wav"):
        if stale != copy:
            stale.unlink(missing_ok=True)
    return copy
