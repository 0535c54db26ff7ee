"""What becomes of a file, decided and checked before anything is computed: the parts, what their
files are called and hold, and which of them are there already.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from demucs_lightning import audio
from demucs_lightning.audio.encoding import FLOAT
from demucs_lightning.separation import Progress
from demucs_lightning.separator.choice import Choice, Parts
from demucs_lightning.separator.names import STEM_FILE, fields_of, filled, template_for, values_of
from demucs_lightning.separator.present import present_in
from demucs_lightning.separator.room import nearest
from demucs_lightning.separator.sources import Source, checked_rate, resized_length

log = logging.getLogger(__name__)

CLIP_MODES = ("rescale", "clamp", "none")
EXISTING = ("refuse", "skip", "overwrite")


@dataclass(frozen=True, kw_only=True)
class Target:
    """How files are called and what they hold.

    ``format``: wav, flac, mp3, m4a, ogg, opus, aiff, or stem.mp4, one file with the mixture and all
    stems. ``filename`` may have {track}, {trackext}, {stem}, {ext}, {title}, {artist}, {album}; it
    is below the folder, with ``below`` in between. ``rate`` in Hz and ``subtype`` (PCM_16, PCM_24,
    PCM_32, FLOAT) are the input's by default, as far as the format has them; ``bitrate`` in kbit/s
    and ``preset`` the format's. ``clip_mode``, for what passes full scale: ``rescale``, one gain
    for all parts, where the format can't hold it; ``clamp`` at 0.99; ``none``, where FLOAT keeps
    all and the other formats saturate. ``existing``, for files that are there: ``refuse`` the
    track, ``skip`` them and write only those that are not there whole, or ``overwrite``.
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
        if f".{self.format}".lower() not in audio.FORMATS:
            known = ", ".join(sorted(suffix[1:] for suffix in audio.FORMATS))
            raise ValueError(f"format is {self.format!r}: it must be one of {known}.")
        if not isinstance(self.filename, str | None):
            raise ValueError(f"filename is {self.filename!r}: it must be text.")
        if self.rate is not None:
            checked_rate(self.rate, "rate")
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
    and ``kept`` the parts that are there and shall stay."""

    reader: audio.AudioReader
    parts: Parts
    target: Target
    files: dict[str, Path]
    encoding: audio.Encoding
    tags: audio.Tags
    rate: int
    kept: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return self.reader.path

    @property
    def skipped(self) -> bool:
        """Whether there is nothing to do."""
        return len(self.kept) == len(self.files)

    @property
    def written(self) -> list[Path]:
        """The files that are to be written; all parts may be in one."""
        files = [file for name, file in self.files.items() if name not in self.kept]
        return list(dict.fromkeys(files))

    @property
    def frames(self) -> int:
        """How long the parts will be, says the header; 0 for unknown."""
        known = self.reader.info
        return resized_length(known.frames, known.samplerate, self.rate)

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


def plan(
    separator: Separates, path: Path, folder: Path, choice: Choice, target: Target | None = None
) -> Plan:
    """Decide on everything, and check what can be checked, without writing anything. The room on
    the disk is checked when the track's turn has come, as those before it take theirs.

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
    present = [name for name, file in files.items() if file.exists()]
    if present and target.existing == "skip":
        present = present_in(files, reader.info.duration if reader.info.exact else 0)
    if present and target.existing == "skip" and target.format == STEM_FILE:
        present = _present_in(first, parts.names)
    if target.existing == "refuse" and present:
        there = files[present[0]]
        raise FileExistsError(f"{there} is there already: skip existing files or overwrite.")
    kept = tuple(present) if target.existing == "skip" else ()
    planned = Plan(reader, parts, target, files, encoding, tags, rate, kept)
    if not planned.skipped:
        _check(planned)
    return planned


def _present_in(file: Path, wanted: Sequence[str]) -> list[str]:
    """The parts in a file of stems: all or, as it can only be written anew, none.

    Raises FileExistsError where that would take away what nobody asks for.
    """
    there = audio.stem_names(file)
    lacking = [name for name in wanted if name not in there]
    if not lacking:
        return list(wanted)
    if not there or {*there} - {*wanted}:
        held = ", ".join(there) or "no stem with a name"
        raise FileExistsError(
            f"{file} lacks {', '.join(lacking)} and holds {held}: overwrite it, or ask for all."
        )
    log.warning("%s lacks %s: it is written anew.", file, ", ".join(lacking))
    return []


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


def _check(planned: Plan) -> None:
    """The encoder and the folder."""
    first = planned.written[0]
    audio.check_encoder(
        first,
        samplerate=planned.rate,
        channels=planned.reader.channels,
        encoding=planned.encoding,
        frames=planned.frames,
    )
    there = nearest(first.parent)
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is a file: a folder for the stems was expected.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{there} can't be written to: choose another folder.")
