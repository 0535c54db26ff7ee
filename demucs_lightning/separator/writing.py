"""From the plan of a track to the files of its parts, in bounded memory.

A file has its name only when it is complete. What is computed is encoded in the background. Where
an integer format or a codec would clip, all parts of a track are made quieter by one gain, so that
their balance and their sum stay. That gain is known when the track is through: until then the parts
lie in a nameless file of floats, too, and if there is a peak they are encoded again from there.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from demucs_lightning import audio
from demucs_lightning.audio.writing import SCALES
from demucs_lightning.separation import Progress
from demucs_lightning.separator.background import Behind
from demucs_lightning.separator.files import Plan, Separates
from demucs_lightning.separator.missing import HEADROOM, narrowed
from demucs_lightning.separator.room import check_room, room_of
from demucs_lightning.separator.spool import Spool

CLAMPED = 0.99  # as in demucs 4


@dataclass(frozen=True)
class Report:
    """What came of a track: the files of its parts, of which those of ``kept`` were there before;
    seconds of audio and of computing; the gain of all parts."""

    files: dict[str, Path]
    seconds: float
    elapsed: float
    gain: float = 1.0
    kept: tuple[str, ...] = ()

    @property
    def skipped(self) -> bool:
        """Whether all files were there."""
        return len(self.kept) == len(self.files)


class Clips(Exception):
    """A part passes full scale, so that another gain is needed."""


def execute(separator: Separates, planned: Plan, progress: Progress | None = None) -> Report:
    """Separate the track of a plan.

    Raises OSError where the disk has no room for it, and what `Separator.separate_to` does.
    """
    if planned.skipped:
        return Report(planned.files, planned.reader.info.duration, 0.0, kept=planned.kept)
    for folder in {file.parent for file in planned.written}:
        audio.remove_leftovers(folder)
    check_room([room_of(planned)], purpose=f"separate {planned.path}")
    start = time.monotonic()
    planned = narrowed(planned)
    with _no_empty_folders(planned.written):
        blocks = _computed(separator, planned, progress)
        if planned.rescales:
            frames, gain = _fitting(planned, blocks)
        else:
            frames, gain = _encoded(planned, blocks, 1.0), 1.0
    if progress is not None:
        progress(1.0)
    elapsed = time.monotonic() - start
    return Report(planned.files, frames / planned.rate, elapsed, gain, planned.kept)


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


def _computed(separator: Separates, planned: Plan, progress: Progress | None) -> Iterator[Tensor]:
    """Blocks (P, C, t) of the parts, or (1 + P, C, t) with the mixture first where it is needed."""
    for parts, mixture in separator.parts(
        planned.reader, planned.parts, planned.rate, mixed=planned.mixed, progress=progress
    ):
        yield parts if mixture is None else torch.cat([mixture[None], parts])


def _fitting(planned: Plan, blocks: Iterator[Tensor]) -> tuple[int, float]:
    """Write the files at the gain at which none of the parts clips, kept ones included where they
    may decide on it, so that the new files fit the others; the samples of each, and the gain."""
    first, peak = 0 if planned.together else planned.first, 0.0
    with Spool(planned.written[0].parent) as spool:

        def noted() -> Iterator[Tensor]:
            nonlocal peak
            for block in blocks:
                spool.add(block)
                peak = max(peak, block[first:].abs().max().item())
                yield block

        def unclipped() -> Iterator[Tensor]:
            for block in noted():
                if peak > 1:
                    raise Clips
                yield block

        try:
            return _encoded(planned, unclipped(), 1.0), 1.0
        except Clips:
            for _ in noted():  # the rest of it
                pass
        gain = 1 / (HEADROOM * peak)
        return _encoded(planned, spool.blocks(), gain), gain


def _encoded(planned: Plan, blocks: Iterable[Tensor], gain: float) -> int:
    """Write the files, each in a thread of its own, while the next block is made; the samples of
    each."""
    frames, writers = 0, _writers(planned)
    with ExitStack() as stack:
        for writer in writers:
            stack.enter_context(writer)
        encoding = stack.enter_context(Behind(len(writers)))
        for block in blocks:
            frames += block.shape[-1]
            parts = _chosen(planned, _final(planned, block * gain))
            encoding.run([partial(w.write, p) for w, p in zip(writers, parts, strict=True)])
    return frames


def _writers(planned: Plan) -> list[Any]:
    settings: dict[str, Any] = {
        "samplerate": planned.rate,
        "channels": planned.reader.channels,
        "encoding": planned.encoding,
        "tags": planned.tags,
        "clip": True,
    }
    if planned.together:
        (path,) = planned.written
        return [audio.StemWriter(path, stems=planned.parts.names, **settings)]
    return [audio.AudioWriter(file, **settings) for file in planned.written]


def _chosen(planned: Plan, block: Tensor) -> list[Tensor]:
    """What each writer takes of a block."""
    if planned.together:
        return [block]
    parts = zip(planned.parts.names, block[planned.first :], strict=True)
    return [part for name, part in parts if name not in planned.kept]


def _final(planned: Plan, block: Tensor) -> Tensor:
    """What is stored of a block: within full scale, and in steps that sum up exactly."""
    if planned.target.clip_mode == "clamp":
        block = torch.cat([block[: planned.first], block[planned.first :].clamp(-CLAMPED, CLAMPED)])
    if planned.exact and planned.subtype in SCALES:
        mixture, parts = block[0], block[1:]
        parts = planned.parts.completed(parts, mixture, SCALES[planned.subtype])
        block = torch.cat([mixture[None].to(parts), parts])
    return block
