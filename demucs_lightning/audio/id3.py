"""What WAV and AIFF can't say in their own ways, as the ID3v2.3 tag that players look for in them:
the cover, and the texts that LIST INFO has no name for, or all of an AIFF.
"""

import os
import struct
from pathlib import Path

from demucs_lightning.audio.metadata import Tags

FRAMES = {"album_artist": b"TPE2", "disc": b"TPOS", "composer": b"TCOM"}
OTHERS = {
    **{"title": b"TIT2", "artist": b"TPE1", "album": b"TALB", "track": b"TRCK", "date": b"TYER"},
    **{"genre": b"TCON", "copyright": b"TCOP"},
}
UTF_16, LATIN, FRONT_COVER = b"\x01", b"\x00", b"\x03"
WHOLE = 4  # bytes: samples behind the tag can be mapped


def tag(tags: Tags, *, all_texts: bool = False) -> bytes:
    """The tag, or nothing where there is nothing to say; with ``all_texts``, of these too that
    LIST INFO has."""
    texts = tags.texts()
    names = FRAMES | OTHERS if all_texts else FRAMES
    frames = [
        _frame(name, UTF_16 + _encoded(texts[key])) for key, name in names.items() if key in texts
    ]
    if all_texts and "comment" in texts:  # of no language, and about nothing in particular
        empty = _encoded("") + b"\0\0"
        frames.append(_frame(b"COMM", UTF_16 + b"und" + empty + _encoded(texts["comment"])))
    if tags.cover:
        mime = tags.cover_mime.encode("ascii", "replace")
        frames.append(_frame(b"APIC", LATIN + mime + b"\0" + FRONT_COVER + b"\0" + tags.cover))
    if not frames:
        return b""
    body = b"".join(frames)
    body += bytes(-(10 + len(body)) % WHOLE)
    size = bytes(len(body) >> shift & 0x7F for shift in (21, 14, 7, 0))  # 7 bits of each byte count
    return b"ID3\x03\0\0" + size + body


def append(path: Path, tag: bytes) -> None:
    """Add the tag to an AIFF that is complete: its last chunk."""
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(b"ID3 " + struct.pack(">I", len(tag)) + tag)
        size = file.tell() - 8
        file.seek(4)
        file.write(struct.pack(">I", size))


def _encoded(text: str) -> bytes:
    return text.encode("utf-16", "replace")


def _frame(name: bytes, content: bytes) -> bytes:
    return name + struct.pack(">IH", len(content), 0) + content
