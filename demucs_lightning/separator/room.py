"""The room that separated tracks take on their disks, and whether it is there.

More rather than less: of a codec its highest rate is counted, and of FLAC what it is made of.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demucs_lightning import audio
from demucs_lightning.data.disk import check_space


@dataclass(frozen=True)
class Room:
    """Bytes below ``folder``, which is there: of the files that are ``written``, of those that they
    take the place of, and of what is ``spooled`` only while the track is computed."""

    folder: Path
    written: int
    replaced: int
    spooled: int


def room_of(planned: Any) -> Room:
    """The room for the track of a plan."""
    files, channels = planned.written, planned.reader.channels
    streams = 1 + len(planned.parts.names) if planned.together else 1
    size = audio.expected_bytes(
        files[0],
        frames=planned.frames,
        samplerate=planned.rate,
        channels=channels,
        encoding=planned.encoding,
    )
    computed = len(planned.parts.names) + planned.mixed
    return Room(
        nearest(files[0].parent),
        len(files) * (streams * size + len(planned.tags.cover)),
        sum(file.stat().st_size for file in files if file.exists()),
        computed * planned.frames * channels * 4 if planned.rescales else 0,
    )


def check_room(rooms: Iterable[Room], *, purpose: str) -> None:
    """Raise OSError unless each disk has room for the tracks, one after the other."""
    disks: dict[int, list[Room]] = {}
    for room in rooms:
        disks.setdefault(os.stat(room.folder).st_dev, []).append(room)
    for each in disks.values():
        if any(room.spooled for room in each):
            purpose += ", with room for stems that may clip (clip modes clamp and none need less)"
        check_space(each[0].folder, _most(each), purpose=purpose)


def _most(rooms: Iterable[Room]) -> int:
    """The most bytes that are there at once: a file replaces another when it is complete."""
    most = kept = 0
    for room in rooms:
        most = max(most, kept + room.written + room.spooled)
        kept += room.written - room.replaced
    return most


def nearest(path: Path) -> Path:
    """The path, or the innermost of the folders around it that is there."""
    there = path.absolute()
    while not there.exists():
        there = there.parent
    return there
