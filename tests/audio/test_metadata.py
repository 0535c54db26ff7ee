"""Tags and covers, carried from one format to another."""

import io
import struct
import zlib
from dataclasses import replace

import av
import numpy as np
import pytest

from demucs_lightning import audio
from demucs_lightning.audio import StemWriter, Tags
from tests.audio.sounds import stempeg_song, tones


def png() -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    rows = b"".join(b"\0" + bytes([255, 0, number]) * 8 for number in range(8))
    size = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + size + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def jpeg() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=1)
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuvj420p"
        frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 200, np.uint8), format="rgb24")
        container.mux(stream.encode(frame.reformat(format="yuvj420p")))
        container.mux(stream.encode(None))
    return file.getvalue()


TAGS = Tags(
    title="Tïtle “1”; = x",
    artist="Ärtist / 歌手",
    album="Album",
    album_artist="Both",
    track="3/9",
    disc="1/2",
    date="1999",
    genre="Rock",
    composer="Cöm",
    comment="a comment",
    copyright="2026 me",
)
SUFFIXES = [".flac", ".mp3", ".m4a", ".opus", ".ogg", ".wav", ".aiff"]


@pytest.mark.parametrize("cover", ["png", "jpeg", ""])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tags_come_back(tmp_path, suffix, cover):
    picture = {"png": png, "jpeg": jpeg, "": bytes}[cover]()
    mime = f"image/{cover}" if cover else ""
    path = tmp_path / f"x{suffix}"
    given = replace(TAGS, cover=picture, cover_mime=mime)
    with audio.writer(path, samplerate=48_000, channels=2, tags=given) as to:
        to.write(tones())
    assert audio.tags(path) == given
    plain = tmp_path / f"plain{suffix}"
    audio.write(plain, tones(), samplerate=48_000)
    assert (audio.read(path)[0] == audio.read(plain)[0]).all(), "tags change no sample"
    assert audio.tags(plain) == Tags()


@pytest.mark.parametrize("suffix", [".flac", ".mp3", ".m4a"])
def test_the_cover_stays_the_front_cover(tmp_path, suffix):
    given = replace(TAGS, cover=png(), cover_mime="image/png")
    path = tmp_path / f"x{suffix}"
    with audio.writer(path, samplerate=48_000, channels=2, tags=given) as to:
        to.write(tones())
    assert audio.tags(path) == given
    with av.open(str(path)) as container:
        (picture,) = container.streams.video
        assert suffix == ".m4a" or picture.metadata["comment"] == "Cover (front)"


def test_stem_files_carry_tags(tmp_path):
    given = replace(TAGS, cover=png(), cover_mime="image/png")
    path = tmp_path / "x.stem.mp4"
    with StemWriter(path, samplerate=44_100, channels=2, stems=["a", "b"], tags=given) as to:
        to.write(tones().expand(3, -1, -1))
    assert audio.tags(path) == given
    assert audio.info(path, 2).frames >= 44_100


def test_tags_of_a_real_song():
    found = audio.tags(stempeg_song())
    assert found.cover_mime == "image/png"
    assert found.cover[:4] == b"\x89PNG"


def test_a_cover_that_is_no_picture_is_left_out(tmp_path, caplog):
    given = Tags(title="x", cover=b"no picture" * 9, cover_mime="image/png")
    with audio.writer(tmp_path / "x.mp3", samplerate=44_100, channels=2, tags=given) as to:
        to.write(tones())
    assert audio.tags(tmp_path / "x.mp3") == Tags(title="x")
    assert "The cover is left out" in caplog.text


def test_files_without_tags_that_can_be_read(tmp_path):
    (tmp_path / "x.mp3").write_text("this is no audio " * 100)
    assert audio.tags(tmp_path / "x.mp3") == Tags()
    with pytest.raises(FileNotFoundError, match="is not there"):
        audio.tags(tmp_path / "y.mp3")
