"""What a WAV can't say in its own way, as the ID3v2.3 tag that players look for in it: the cover,
and the texts that LIST INFO has no name for.
"""

import struct

from demucs_lightning.audio.metadata import Tags

FRAMES = {"album_artist": b"TPE2", "disc": b"TPOS", "composer": b"TCOM"}
UTF_16, LATIN, FRONT_COVER = b"\x01", b"\x00", b"\x03"
WHOLE = 4  # bytes: samples behind the tag can be mapped


def tag(tags: Tags) -> bytes:
    """The tag, or nothing where there is nothing to say."""
    texts = tags.texts()
    frames = [
        _frame(name, UTF_16 + texts[key].encode("utf-16", "replace"))
        for key, name in FRAMES.items()
        if key in texts
    ]
    if tags.cover:
        mime = tags.cover_mime.encode("ascii", "replace")
        frames.append(_frame(b"APIC", LATIN + mime + b"\0" + FRONT_COVER + b"\0" + tags.cover))
    if not frames:
        return b""
    body = b"".join(frames)
    body += bytes(-(10 + len(body)) % WHOLE)
    size = bytes(len(body) >> shift & 0x7F for shift in (21, 14, 7, 0))  # 7 bits of each byte count
    return b"ID3\x03\0\0" + size + body


def _frame(name: bytes, content: bytes) -> bytes:
    return name + struct.pack(">IH", len(content), 0) + content
