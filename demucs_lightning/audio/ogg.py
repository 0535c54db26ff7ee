"""Ogg pages (RFC 3533), each with the serial of its stream, a number and a CRC over all of it.

Files are given a serial that doesn't change, as encoders draw one and no two files would be the
same; Vorbis is given the comments that libsndfile has no name for, a cover among them; and the
pages that a damaged file has lost are found, which decoders pass over in silence.
"""

import mmap
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

HEADER = 27  # bytes, before one for each segment
SERIAL, NUMBER, CRC, COUNT = slice(14, 18), slice(18, 22), slice(22, 26), 26
NOWHERE = 2**64 - 1  # the position of a page that ends no packet
OPUS_RATE = 48_000
JOINED = 50  # pages that lack at the start: a recording of a broadcast, which begins in its middle
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
ONES = 0xFFFFFFFF
FILLER = b"DATE="  # a comment that libsndfile writes


class Loss(NamedTuple):
    """Sound that a file has lost: about so many seconds, around that second."""

    seconds: float
    at: float


def losses(path: Path) -> list[Loss]:
    """What the pages of a Vorbis or Opus stream that lack or are damaged held, roughly."""
    found: list[Loss] = []
    serial = rate = number = position = 0
    for page in _whole_pages(path):
        own, own_number = struct.unpack("<II", page[14:22])
        if not rate:
            serial, rate = own, _rate(page[HEADER + page[COUNT] :])
            if not rate:  # another codec
                return []
        if own != serial:
            continue
        end = struct.unpack("<Q", page[6:14])[0]
        lost, number = own_number - number, own_number + 1
        if end == NOWHERE:
            end = position
        if lost > 0 and (position or lost < JOINED):  # of the time up to the end of this page
            seconds = max(0.0, (end - position) / rate * lost / (lost + 1))
            found.append(Loss(seconds, position / rate))
        position = end
    return found


def _whole_pages(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(b"OggS")
        while at >= 0:
            start = content[at : at + HEADER]
            segments = content[at + HEADER : at + HEADER + start[-1]]
            page = bytearray(start + segments)
            page += content[at + len(page) : at + len(page) + sum(segments)]
            said, page[CRC] = bytes(page[CRC]), bytes(4)
            whole = len(start) == HEADER and checksum(page).to_bytes(4, "little") == said
            if whole:
                yield bytes(page)
            at = content.find(b"OggS", at + (len(page) if whole else 4))


def _rate(packet: bytes) -> int:
    """The samples per second that positions count; 0 for another codec."""
    if packet.startswith(b"OpusHead"):
        return OPUS_RATE
    return struct.unpack("<I", packet[12:16])[0] if packet.startswith(b"\x01vorbis") else 0


def filler(comments: Sequence[bytes]) -> str:
    """The text of the FILLER that takes as much room in a header as these comments do."""
    return "x" * (len(_packed(comments)) - len(_packed([FILLER])))


def settle(path: Path, comments: Sequence[bytes] = ()) -> None:
    """Give the one stream of an Ogg file the serial 0, in place, and a Vorbis stream ``comments``,
    each NAME=text in UTF-8, in place of its `filler`: no page moves."""
    changes, at = [], 0  # of the bodies of all pages but the first
    with path.open("r+b") as file:
        while len(start := file.read(HEADER)) == HEADER and start.startswith(b"OggS"):
            segments = file.read(start[COUNT])
            page = bytearray(start + segments + file.read(sum(segments)))
            page[SERIAL] = page[CRC] = bytes(4)
            number, body = struct.unpack("<I", page[NUMBER])[0], len(start + segments)
            if comments and number == 1:
                changes = _changes(page[body:], comments)
            if number:
                page[body:] = _changed(page[body:], at, changes)
                at += len(page) - body
            page[CRC] = checksum(page).to_bytes(4, "little")
            file.seek(-len(page), 1)
            file.write(page)


def _changes(header: bytearray, comments: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """What to write where in the comment header of Vorbis: how many comments there are, behind the
    name of the packet and that of the encoder, and the comments."""
    where = 11 + struct.unpack("<I", header[7:11])[0]
    count = struct.unpack("<I", header[where : where + 4])[0] - 1 + len(comments)
    return [(where, struct.pack("<I", count)), (header.index(FILLER) - 4, _packed(comments))]


def _packed(comments: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(each)) + each for each in comments)


def _changed(body: bytearray, start: int, changes: Sequence[tuple[int, bytes]]) -> bytearray:
    """With those changes that lie in it, where it begins at ``start`` of what they count from."""
    for place, content in changes:
        first, end = max(place, start), min(place + len(content), start + len(body))
        if first < end:
            body[first - start : end - start] = content[first - place : end - place]
    return body


def checksum(page: bytes | bytearray) -> int:
    """The CRC of a page whose own CRC is 0: zlib's polynomial, with the bits the other way round
    and without its inversions."""
    register = zlib.crc32(page.translate(REVERSED), ONES) ^ ONES
    return int(f"{register:032b}"[::-1], 2)
