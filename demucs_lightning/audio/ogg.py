"""Ogg pages with a serial number that doesn't change: encoders draw one, and files would differ.

The format is RFC 3533: each page has the serial of its stream, and a CRC over all of the page.
"""

import zlib
from pathlib import Path

HEADER = 27  # bytes, before one for each segment
SERIAL, CRC, COUNT = slice(14, 18), slice(22, 26), 26
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
ONES = 0xFFFFFFFF


def settle(path: Path) -> None:
    """Give the one stream of an Ogg file the serial 0, in place."""
    with path.open("r+b") as file:
        while len(start := file.read(HEADER)) == HEADER and start.startswith(b"OggS"):
            segments = file.read(start[COUNT])
            page = bytearray(start + segments + file.read(sum(segments)))
            page[SERIAL] = page[CRC] = bytes(4)
            page[CRC] = checksum(page).to_bytes(4, "little")
            file.seek(-len(page), 1)
            file.write(page)


def checksum(page: bytes | bytearray) -> int:
    """The CRC of a page whose own CRC is 0: zlib's polynomial, with the bits the other way round
    and without its inversions."""
    register = zlib.crc32(page.translate(REVERSED), ONES) ^ ONES
    return int(f"{register:032b}"[::-1], 2)
