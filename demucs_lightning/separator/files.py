"""From a file to files of its parts, in bounded memory: planned and checked first, then computed.

A file has its name only when it is complete. Where an integer format or a codec would clip, all
parts of a track are made quieter by one gain, so that their balance and their sum stay; the gain is
known when the track is through, so until then the parts lie in a nameless file of floats.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from demucs_lightning import audio
from demucs_lightning.audio.encoding import FLOAT, format_of
from demucs_lightning.audio.wav import WIDTHS
from demucs_lightning.audio.writing import SCALES
from demucs_lightning.data.disk import check_space
from demucs_lightning.separation import Progress
from demucs_lightning.separator.background import Behind
from demucs_lightning.separator.choice import Choice, Parts
from demucs_lightning.separator.names import STEM_FILE, fields_of, filled, template_for, values_of
from demucs_lightning.separator.sources import Source, resized_length
from demucs_lightning.separator.spool import Spool

CLIP_MODES = ("rescale", "clamp", "none")
EXISTING = ("refuse", "skip", "overwrite")
EXACT = ("PCM_16", "PCM_24")  # whose steps float32 holds
HEADROOM = 1.01  # what is rescaled peaks just below full scale, as in demucs 4
CLAMPED = 0.99  # as in demucs 4


@dataclass(frozen=True, kw_only=True)
class Target:
    """How files are called and what they hold.

    ``format``: wav, flac, mp3, m4a, ogg, opus, aiff, or stem.mp4, one file with the mixture and all
    stems. ``filename`` may have {track}, {trackext}, {stem}, {ext}, {title}, {artist}, {album}; it
    is below the folder, with ``below`` in between. ``rate`` in Hz and ``subtype`` (PCM_16, PCM_24,
    PCM_32, FLOAT) are the input's by default, as far as the format has them; ``bitrate`` in kbit/s
    and ``preset`` the format's. ``clip_mode``, for what passes full scale: ``rescale``, one gain
    for all parts, where the format can't hold it; ``clamp`` at 0.99; ``none``, where FLOAT keeps
    all and the other formats saturate. ``existing``: ``refuse``, ``skip`` or ``overwrite``.
    """

    format: str = "wav"
    filename: str | None = None
    below: Path = Path()
    rate: int | None = None
    subtype: str | None = None
    bitrate: int | None = None
    preset: int | None = None
    clip_mode: str = "rescale"
    existing: str = "refuse"

    def __post_init__(self) -> None:
        format_of(f"x.{self.format}")
        for name, known in (("clip_mode", CLIP_MODES), ("existing", EXISTING)):
            if getattr(self, name) not in known:
                value = getattr(self, name)
                raise ValueError(f"{name} is {value!r}: it must be one of {', '.join(known)}.")


class Separates(Protocol):
    """What is asked of a `Separator`."""

    @property
    def samplerate(self) -> int: ...

    @property
    def model(self) -> Any: ...

    def parts(
        self,
        source: Source,
        parts: Parts,
        rate: int,
        *,
        mixed: bool = False,
        progress: Progress | None = None,
    ) -> Iterator[tuple[Tensor, Tensor | None]]: ...


@dataclass(frozen=True)
class Plan:
    """A track, and all that is decided before it is separated. ``files`` has the path of each part,
    and ``skipped`` says that all of them are there and shall stay."""

    reader: audio.AudioReader
    parts: Parts
    target: Target
    files: dict[str, Path]
    encoding: audio.Encoding
    tags: audio.Tags
    rate: int
    skipped: bool = False

    @property
    def path(self) -> Path:
        return self.reader.path

    @property
    def together(self) -> bool:
        """Whether all parts go into one file, behind the mixture."""
        return self.target.format == STEM_FILE

    @property
    def subtype(self) -> str | None:
        return audio.subtype_of(next(iter(self.files.values())), self.encoding)

    @property
    def rescales(self) -> bool:
        return self.target.clip_mode == "rescale" and self.subtype != FLOAT

    @property
    def exact(self) -> bool:
        return self.parts.choice.exact_sum

    @property
    def mixed(self) -> bool:
        """Whether the mixture goes along with the parts, as the first of them."""
        return self.together or self.exact

    @property
    def first(self) -> int:
        """Where the parts begin in what is computed."""
        return int(self.mixed)


@dataclass(frozen=True)
class Report:
    """What was written: files by part, seconds of audio and of computing, the gain of all parts."""

    files: dict[str, Path]
    seconds: float
    elapsed: float
    gain: float = 1.0
    skipped: bool = False


def plan(
    separator: Separates, path: Path, folder: Path, choice: Choice, target: Target | None = None
) -> Plan:
    """Decide on everything, and check what can be checked, without writing anything.

    Raises ValueError and OSError for a file that can't be read or an output that can't be written,
    FileExistsError for one that is there.
    """
    target = target or Target()
    parts = Parts(choice, separator.model)
    reader = audio.stream(path)
    tags = audio.tags(path)
    files = _files(path, folder, target, parts.names, tags)
    first = next(iter(files.values()))
    encoding = audio.Encoding(
        target.subtype or audio.subtype_like(reader.info.subtype, first),
        target.bitrate,
        target.preset,
    )
    rate = target.rate or reader.samplerate
    present = [file for file in dict.fromkeys(files.values()) if file.exists()]
    if target.existing == "refuse" and present:
        raise FileExistsError(f"{present[0]} is there already: skip existing files or overwrite.")
    whole = len(present) == len(set(files.values()))
    planned = Plan(
        reader, parts, target, files, encoding, tags, rate, target.existing == "skip" and whole
    )
    if not planned.skipped:
        _check(planned, folder)
    return planned


def names(
    separator: Separates, path: Path, folder: Path, choice: Choice, target: Target
) -> dict[str, Path]:
    """The files of a plan alone: the track is opened only where they are called by its tags."""
    parts = Parts(choice, separator.model).names
    fields = fields_of(target.filename or "")
    tags = audio.tags(path) if {"title", "artist", "album"} & {*fields} else audio.Tags()
    return _files(path, folder, target, parts, tags)


def _files(
    path: Path, folder: Path, target: Target, names: Sequence[str], tags: audio.Tags
) -> dict[str, Path]:
    template = template_for(target.filename, target.format, len(names))
    values = {**values_of(path, tags), "ext": target.format}
    stems = (
        dict.fromkeys(names, "stems")
        if target.format == STEM_FILE
        else {name: name for name in names}
    )
    files = {
        name: filled(folder / target.below, template, {**values, "stem": stem})
        for name, stem in stems.items()
    }
    for file in files.values():
        if file.is_dir():
            raise IsADirectoryError(f"{file} is a folder: no stem can have its name.")
        if file.exists() and file.samefile(path):
            raise ValueError(f"{path} would be replaced by its own stem: choose another filename.")
    return files


def _check(planned: Plan, folder: Path) -> None:
    """The encoder, the folder and the room on its disk."""
    channels, known = planned.reader.channels, planned.reader.info
    frames = resized_length(known.frames, known.samplerate, planned.rate)
    rate = audio.check_encoder(
        next(iter(planned.files.values())),
        samplerate=planned.rate,
        channels=channels,
        encoding=planned.encoding,
        frames=frames,
    )
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is a file: a folder for the stems was expected.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{there} can't be written to: choose another folder.")
    width = WIDTHS.get(planned.subtype or "", 0)
    parts = len(planned.parts.names) + planned.together
    needed = parts * frames * channels * width
    if not width:  # a codec: what its bit rate makes of it
        form = format_of(next(iter(planned.files.values())))
        kilobits = planned.encoding.bitrate or form.bitrate or 320
        needed = round(parts * frames / rate * kilobits * 125)
    if planned.rescales:
        needed += (len(planned.parts.names) + planned.mixed) * frames * channels * 4
    check_space(there, needed, purpose=f"separate {planned.path}")


def execute(separator: Separates, planned: Plan, progress: Progress | None = None) -> Report:
    """Separate the track of a plan."""
    if planned.skipped:
        return Report(planned.files, planned.reader.info.duration, 0.0, skipped=True)
    start, gain, count = time.monotonic(), 1.0, 0
    writers = _writers(planned)
    with ExitStack() as stack:
        stack.enter_context(_no_empty_folders([writer.path for writer in writers]))
        for writer in writers:
            stack.enter_context(writer)
        blocks = _computed(separator, planned, progress)
        if planned.rescales:
            spool = stack.enter_context(Spool(writers[0].path.parent))
            gain = _spooled(spool, blocks, 0 if planned.together else planned.first)
            blocks = spool.blocks()
        encoding = stack.enter_context(Behind(len(writers)))
        for block in blocks:
            count += block.shape[-1]
            final = _final(planned, block * gain)
            parts = [final] if planned.together else final
            encoding.run([partial(w.write, p) for w, p in zip(writers, parts, strict=True)])
    if progress is not None:
        progress(1.0)
    return Report(planned.files, count / planned.rate, time.monotonic() - start, gain)


@contextmanager
def _no_empty_folders(files: Sequence[Path]) -> Iterator[None]:
    """Take back, after a failure, the folders that were made for the files."""
    parents = {parent for file in files for parent in file.parents}
    made = [parent for parent in parents if not parent.exists()]
    try:
        yield
    except BaseException:
        for folder in sorted(made, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):
                folder.rmdir()
        raise


def _writers(planned: Plan) -> list[Any]:
    settings: dict[str, Any] = {
        "samplerate": planned.rate,
        "channels": planned.reader.channels,
        "encoding": planned.encoding,
        "tags": planned.tags,
        "clip": True,
    }
    if planned.together:
        path = next(iter(planned.files.values()))
        return [audio.StemWriter(path, stems=planned.parts.names, **settings)]
    return [audio.AudioWriter(file, **settings) for file in planned.files.values()]


def _computed(separator: Separates, planned: Plan, progress: Progress | None) -> Iterator[Tensor]:
    """Blocks (P, C, t) of the parts, or (1 + P, C, t) with the mixture first where it is needed."""
    for parts, mixture in separator.parts(
        planned.reader, planned.parts, planned.rate, mixed=planned.mixed, progress=progress
    ):
        yield parts if mixture is None else torch.cat([mixture[None], parts])


def _spooled(spool: Spool, blocks: Iterator[Tensor], first: int) -> float:
    """Spool all blocks; the gain at which none of their parts from ``first`` on would clip."""
    peak = 0.0

    def noted() -> Iterator[Tensor]:
        nonlocal peak
        for block in blocks:
            peak = max(peak, block[first:].abs().max().item())
            yield block

    spool.fill(noted())
    return 1.0 if peak <= 1 else 1 / (HEADROOM * peak)


def _final(planned: Plan, block: Tensor) -> Tensor:
    """What is stored of a block: within full scale, and in steps that sum up exactly."""
    if planned.target.clip_mode == "clamp":
        block = torch.cat([block[: planned.first], block[planned.first :].clamp(-CLAMPED, CLAMPED)])
    if planned.exact and planned.subtype in EXACT:
        mixture, parts = block[0], block[1:]
        parts = planned.parts.completed(parts, mixture, SCALES[planned.subtype])
        block = torch.cat([mixture[None], parts])
    return block if planned.together else block[planned.first :]
