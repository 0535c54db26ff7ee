"""A track and its stems in one file, as DJ programs play it: Native Instruments' `.stem.mp4`.

An MP4 with AAC streams, the mixture first, of which only that one is enabled, so that any player
plays the song. `moov/udta/stem` holds JSON: the names and colours of the stems, and settings of a
compressor and a limiter, which are off here. Traktor wants four stems, in stereo.
"""

import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from demucs_lightning.audio.encoding import STEMS, Encoding
from demucs_lightning.audio.metadata import Tags
from demucs_lightning.audio.targets import Target
from demucs_lightning.audio.writing import AudioWriter

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLORS = ("#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#E69F00", "#0072B2", "#F0E442", "#999999")
DSP = {
    "compressor": {
        "enabled": False,
        "ratio": 3,
        "output_gain": 0.5,
        "release": 0.3,
        "attack": 0.003,
        "input_gain": 0.5,
        "threshold": 0,
        "hp_cutoff": 300,
        "dry_wet": 50,
    },
    "limiter": {"enabled": False, "release": 0.05, "threshold": 0, "ceiling": -0.35},
}


class StemWriter(AudioWriter):
    """`AudioWriter` of a `.stem.mp4`: takes blocks (1 + S, C, t), the mixture and then `stems`.

    The rate becomes 44100 or 48000 Hz or another of AAC's. No depth can be chosen; a bit rate can,
    which each stream has.
    """

    def __init__(  # noqa: PLR0913
        self,
        path: str | Path,
        *,
        samplerate: int,
        channels: int,
        stems: Sequence[str],
        encoding: Encoding | None = None,
        tags: Tags | None = None,
        clip: bool = False,
    ) -> None:
        if not str(path).lower().endswith(STEMS):
            raise ValueError(f"{path} can't hold stems: its name must end in {STEMS}.")
        if not stems:
            raise ValueError(f"{path} can't be written: it would hold no stem.")
        super().__init__(
            path,
            samplerate=samplerate,
            channels=channels,
            encoding=encoding,
            tags=tags,
            clip=clip,
            streams=1 + len(stems),
        )
        self.stems = list(stems)

    def write(self, block: Tensor) -> None:
        """Append (1 + S, C, t)."""
        shape = (1 + len(self.stems), self.channels)
        if block.ndim != 3 or tuple(block.shape[:2]) != shape:
            raise ValueError(
                f"{self.path} takes blocks of shape ({shape[0]}, {shape[1]}, t), not "
                f"{tuple(block.shape)}."
            )
        self._append(block.flatten(0, 1))

    def _finish(self, target: Target, partial: Path) -> None:
        super()._finish(target, partial)
        insert_box(partial, b"stem", description(self.stems))


def stem_names(path: str | Path) -> list[str]:
    """The stems that a `.stem.mp4` names, in the order of its streams behind the mixture; none for
    any other file."""
    try:
        stems = json.loads(find_box(Path(path), b"moov", b"udta", b"stem"))["stems"]
        return [str(stem["name"]) for stem in stems]
    except (KeyError, TypeError, ValueError, struct.error):
        return []


def description(stems: Sequence[str]) -> bytes:
    """The JSON that names the stems and their colours."""
    named = [
        {"name": name, "color": COLORS[number % len(COLORS)]} for number, name in enumerate(stems)
    ]
    return json.dumps({"mastering_dsp": DSP, "version": 1, "stems": named}).encode()


def insert_box(path: Path, name: bytes, content: bytes) -> None:
    """Put a box at the end of `moov/udta` of an MP4 whose `moov` is its last box.

    Nothing before it moves, so no offset in it needs to change.
    """
    with path.open("r+b") as file:
        at, size = _last_box(path)
        file.seek(at)
        moov = file.read(size)
        if moov[4:8] != b"moov":
            raise ValueError(f"{path} is no MP4 that a box can be added to: moov is not its end.")
        box = _box(name, content)
        places = [(start, end) for kind, start, end in _boxes(moov, 8) if kind == b"udta"]
        body = moov[8:]
        if places:
            start, end = places[0]
            body = moov[8:start] + _box(b"udta", moov[start + 8 : end] + box) + moov[end:]
        else:
            body += _box(b"udta", box)
        file.seek(at)
        file.write(_box(b"moov", body))


def find_box(path: Path, *names: bytes) -> bytes:
    """The content of a box by its path; KeyError where there is none."""
    for at, size, kind in _top_boxes(path):
        if kind == names[0]:
            with path.open("rb") as file:
                file.seek(at + 8)
                content = file.read(size - 8)
            break
    else:
        raise KeyError(names[0])
    for name in names[1:]:
        start, end = next(((s, e) for kind, s, e in _boxes(content, 0) if kind == name), (0, 0))
        if not end:
            raise KeyError(name)
        content = content[start + 8 : end]
    return content


def _box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


def _boxes(content: bytes, at: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each box within the content of another."""
    while at + 8 <= len(content):
        size, kind = struct.unpack(">I4s", content[at : at + 8])
        if size < 8:
            return
        yield kind, at, at + size
        at += size


def _top_boxes(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Offset, size and kind of each box of a file."""
    length, at = path.stat().st_size, 0
    with path.open("rb") as file:
        while at + 8 <= length:
            file.seek(at)
            size, kind = struct.unpack(">I4s", file.read(8))
            if size == 1:  # 64 bits follow
                size = struct.unpack(">Q", file.read(8))[0]
            size = size or length - at
            if size < 8:
                return
            yield at, min(size, length - at), kind
            at += size


def _last_box(path: Path) -> tuple[int, int]:
    at, size, _ = list(_top_boxes(path))[-1]
    return at, size
