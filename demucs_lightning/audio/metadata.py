"""What a file says of itself: title, artist, cover, ..., read from any format and carried over.

FLAC, MP3, M4A, `.stem.mp4`, Ogg (Vorbis, Opus), WAV (LIST INFO and ID3) and AIFF (ID3) hold all.
"""

import base64
import io
import logging
import struct
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import av
from av.container import OutputContainer
from av.error import FFmpegError
from av.stream import Disposition

from demucs_lightning.audio.files import existing, url

log = logging.getLogger(__name__)

MIMES = {"png": "image/png", "mjpeg": "image/jpeg"}
FRONT_COVER = 3
PICTURE = "METADATA_BLOCK_PICTURE"
VORBIS_NAMES = {"album_artist": "albumartist", "track": "tracknumber", "disc": "discnumber"}
LARGEST_COVER = 16 * 2**20  # bytes: what a picture in a FLAC can have


@dataclass(frozen=True)
class Tags:
    """Texts as they stand in the file, empty where it says nothing; `cover` is a PNG or JPEG."""

    title: str = ""
    artist: str = ""
    album: str = ""
    album_artist: str = ""
    track: str = ""
    disc: str = ""
    date: str = ""
    genre: str = ""
    composer: str = ""
    comment: str = ""
    copyright: str = ""
    cover: bytes = b""
    cover_mime: str = ""

    def texts(self) -> dict[str, str]:
        """Every text that isn't empty, by its name."""
        return {name: text for name, text in asdict(self).items() if text and name in TEXTS}


TEXTS = tuple(field.name for field in fields(Tags) if not field.name.startswith("cover"))
OTHER_NAMES = {"artist": "author", "date": "year"}


def tags(path: str | Path) -> Tags:
    """The tags of a file, none where there are none or they can't be read.

    Raises FileNotFoundError, OSError or ValueError for a file that isn't there, or is empty.
    """
    path = existing(path)
    try:
        options = {"protocol_whitelist": "file"}
        with av.open(url(path), options=options, metadata_errors="replace") as container:
            found = dict(container.metadata)
            for stream in container.streams.audio[:1]:  # where Ogg has them
                found = {**stream.metadata, **found}
            picture = next(
                (s for s in container.streams.video if s.codec_context.name in MIMES), None
            )
            cover, mime = b"", ""
            if picture is not None and picture.disposition & Disposition.attached_pic:
                cover = next((bytes(packet) for packet in container.demux(picture)), b"")
                mime = MIMES[picture.codec_context.name]
    except FFmpegError as error:
        log.debug("%s: its tags can't be read (%s)", path, error)
        return Tags()
    plain = {key.lower(): _printable(text) for key, text in found.items()}
    texts = {name: plain.get(name) or plain.get(OTHER_NAMES.get(name, ""), "") for name in TEXTS}
    if not 0 < len(cover) <= LARGEST_COVER:
        cover, mime = b"", ""
    return Tags(**texts, cover=cover, cover_mime=mime)


def _printable(text: str) -> str:
    return text.replace("\0", " ").replace("\r\n", "\n").strip()


def attach_cover(container: OutputContainer, cover: bytes) -> av.VideoStream | None:
    """Add a stream for a picture, to a container that holds some; None for what is no picture."""
    try:
        with av.open(io.BytesIO(cover)) as picture:
            template = picture.streams.video[0]
            stream = container.add_stream_from_template(template)
    except (FFmpegError, IndexError, ValueError) as error:
        log.warning("The cover is left out, as it is no picture (%s)", error)
        return None
    stream.disposition = Disposition.attached_pic
    stream.metadata["comment"] = "Cover (front)"  # the kind of picture; else FFmpeg says: other
    return stream


def vorbis_comments(tags: Tags) -> list[bytes]:
    """The tags as Ogg holds them, NAME=text each, the cover among them."""
    texts = {VORBIS_NAMES.get(name, name): text for name, text in tags.texts().items()}
    if tags.cover:
        texts[PICTURE] = picture_comment(tags)
    return [f"{name.upper()}={text}".encode("utf-8", "replace") for name, text in texts.items()]


def picture_comment(tags: Tags) -> str:
    """The cover as Ogg holds it: FLAC's picture block, in base64, as the text of a comment."""
    mime = tags.cover_mime.encode()
    block = struct.pack(">II", FRONT_COVER, len(mime)) + mime
    block += struct.pack(">IIIIII", 0, 0, 0, 0, 0, len(tags.cover))  # no text; the size isn't said
    return base64.b64encode(block + tags.cover).decode()
