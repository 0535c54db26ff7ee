"""Whether a file is all there, as far as its format tells.

Decoders read what they find: half a WAV, AIFF or Ogg passes for a shorter one. Their headers give a
number of bytes, an MP3 of most encoders and an MP4 a length in time, and an Ogg marks its last page
as the last. What can't be told: a FLAC of unknown length, raw AAC, and an MP3 without a header.
"""

import logging
import struct
from functools import lru_cache
from pathlib import Path

from demucs_lightning.audio.files import head, truncated
from demucs_lightning.audio.ogg import losses
from demucs_lightning.audio.wav import OPEN_END, wav_layout

log = logging.getLogger(__name__)

OGG_PAGE = 65_307  # the largest, in bytes
SNIFFED = 8192  # bytes behind the tags of an MP3, more than its first frame has


def check_size(path: Path) -> None:
    """Raise ValueError for a file that ends before its header says; warn where that may be."""
    start = head(path)
    if start[:4] in (b"RIFF", b"RF64"):
        wav_layout(path)
    elif start[:4] == b"OggS":
        _check_ogg(path)
    elif start[:4] == b"caff":
        _check_caf(path)
    elif promised := _promised_bytes(start):
        found = path.stat().st_size
        if promised > found:
            raise truncated(path, promised, found, "bytes")


def _promised_bytes(start: bytes) -> int | None:
    """How long a file is, says its header; None where it doesn't."""
    if start[:4] == b"FORM" and start[8:12] in (b"AIFF", b"AIFC"):
        return 8 + struct.unpack(">I", start[4:8])[0]
    if start[:4] == b"riff" and len(start) >= 24:  # W64
        return struct.unpack("<Q", start[16:24])[0]
    if start[:4] == b".snd" and len(start) >= 12:
        offset, size = struct.unpack(">II", start[4:12])
        return None if size == OPEN_END else offset + size
    return None


def _check_caf(path: Path) -> None:
    found, at = path.stat().st_size, 8
    with path.open("rb") as file:
        while at < found:
            file.seek(at)
            size = struct.unpack(">4xq", file.read(12).ljust(12, b"\0"))[0]
            if size < 0:  # the rest of the file
                return
            at += 12 + size
    if at > found:
        raise truncated(path, at, found, "bytes")


def _check_ogg(path: Path) -> None:
    """The last page must be whole, and should be marked as the last."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 2 * OGG_PAGE))
        tail = file.read()
    at = tail.rfind(b"OggS")
    page = tail[at:] if at >= 0 else b""
    # A page is a head of 27 bytes, of which the last counts the sizes that follow.
    if len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
        raise ValueError(f"{path} is truncated: its last Ogg page is not whole.")
    _warn_of_pages(path, size, path.stat().st_mtime_ns, ends=bool(page[5] & 4))


@lru_cache(maxsize=256)  # once, not each time that a file is opened
def _warn_of_pages(path: Path, size: int, time: int, *, ends: bool) -> None:
    if not ends:
        log.warning("%s may be cut off: no Ogg page in it is marked as the last.", path)
    if lost := losses(path):
        log.warning("%s", damaged(path, sum(each.seconds for each in lost), lost[0].at))


def damaged(path: Path, seconds: float, at: float | None) -> str:
    """What to say of a file that has lost some of its sound, the first of it around a second."""
    where = "" if at is None else f", from second {at:.1f} on" if at else ", at its start"
    return (
        f"{path} is damaged: about {seconds:.2f} seconds of it are lost{where}, and what follows "
        "may come too early."
    )


def promises_length(path: Path) -> bool:
    """Whether an MP3 says in its first frame how long it is; otherwise its length is a guess."""
    start = head(path, 10)
    with path.open("rb") as file:
        if start[:3] == b"ID3" and len(start) == 10:
            a, b, c, d = start[6:]
            file.seek(10 + (a << 21 | b << 14 | c << 7 | d))
        frame = file.read(SNIFFED)
    return any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))
