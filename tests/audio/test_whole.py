"""A file that ends too early is told from a whole one, where its format lets that be known."""

import logging
import random
import re
from pathlib import Path

import av
import pytest
import soundfile

from demucs_lightning import audio
from demucs_lightning.audio.ogg import _whole_pages, checksum, losses
from tests.audio.sounds import noise, stempeg_song, tones


def cut(path: Path, part: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])


@pytest.mark.parametrize("part", [0.3, 0.6, 0.99])
@pytest.mark.parametrize(
    "name",
    ["x.wav", "x.rf64", "x.w64", "x.aiff", "x.au", "x.caf", "x.flac", "x.ogg", "x.opus", "x.m4a"],
)
def test_truncated_files_are_refused(tmp_path, name, part):
    path = tmp_path / name
    if name in ("x.opus", "x.m4a", "x.aiff"):
        audio.write(path, noise(2, 96_000), samplerate=48_000)
    else:
        soundfile.write(path, noise(2, 96_000).T.numpy(), 48_000)
    list(audio.stream(path))
    cut(path, part)
    with pytest.raises(ValueError, match=rf"^{path} .*\.$") as caught:
        list(audio.stream(path))
    assert "\n" not in str(caught.value)


def test_a_truncated_mp3_is_known_by_its_header(tmp_path):
    path = tmp_path / "x.mp3"
    audio.write(path, noise(2, 96_000), samplerate=48_000)
    cut(path, 0.6)
    with pytest.raises(ValueError, match=r"x\.mp3 is truncated: its header promises 9\d+ samples"):
        list(audio.stream(path))


def test_a_truncated_mp4_with_its_header_in_front(tmp_path):
    path = tmp_path / "x.stem.mp4"
    path.write_bytes(stempeg_song().read_bytes())
    cut(path, 0.6)
    for stream in range(5):
        with pytest.raises(ValueError, match="is truncated: its header promises 268288 samples"):
            audio.info(path, stream)
        with pytest.raises(ValueError, match="is truncated"):
            list(audio.stream(path, stream=stream))


def test_an_ogg_that_is_cut_between_pages_is_read_with_a_warning(tmp_path, caplog):
    path = tmp_path / "x.ogg"
    audio.write(path, tones(), samplerate=44_100)
    content = path.read_bytes()
    path.write_bytes(content[: content.rfind(b"OggS")])
    with caplog.at_level(logging.WARNING):
        assert list(audio.stream(path))
    assert f"{path} may be cut off: no Ogg page in it is marked as the last." in caplog.text


def mp3(path: Path, *, options: dict[str, str], form: dict[str, str], frames: int) -> None:
    with av.open(str(path), "w", format="mp3", options=form) as container:
        stream = container.add_stream("libmp3lame", rate=44_100, layout="stereo", options=options)
        assert isinstance(stream, av.AudioStream)
        samples = noise(2, frames)
        samples[:, frames // 4 : frames // 2] /= 1000
        frame = av.AudioFrame.from_ndarray(samples.numpy(), format="fltp", layout="stereo")
        frame.sample_rate = 44_100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("variable", [True, False])
def test_an_mp3_without_a_length_is_read_to_its_end(tmp_path, variable):
    options = {"global_quality": "500", "flags": "+qscale"} if variable else {"b": "128k"}
    path = tmp_path / "x.mp3"
    mp3(path, options=options, form={"write_xing": "0"}, frames=441_000)
    found = sum(block.shape[-1] for block in audio.stream(path))
    assert 441_000 <= found < 445_000
    assert audio.info(path).frames == found
    assert not audio.info(path, count=False).exact


def damage(path: Path, size: int) -> None:
    content = bytearray(path.read_bytes())
    at = len(content) // 2
    content[at : at + size] = random.Random(1).randbytes(size)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x.mp3", r"about 0\.\d\d seconds of it are lost, from second 5\.0 on"),
        ("x.ogg", r"about 0\.\d\d seconds of it are lost, from second 4\.\d on"),
        ("x.opus", r"about 1\.00 seconds of it are lost, from second [45]\.\d on"),
    ],
)
def test_what_is_lost_within_a_file_is_said(tmp_path, caplog, name, said):
    path = tmp_path / name
    audio.write(path, noise(2, 441_000), samplerate=44_100)
    list(audio.stream(path))
    assert caplog.text == ""
    damage(path, 5000)
    list(audio.stream(path))
    assert re.search(f"{re.escape(str(path))} is damaged: {said}", caplog.text)


def test_a_recording_of_a_broadcast_has_lost_nothing(tmp_path):
    path = tmp_path / "x.ogg"
    audio.write(path, noise(2, 441_000), samplerate=44_100)
    assert losses(path) == []
    pages = [bytearray(page) for page in _whole_pages(path)]
    for number, page in enumerate(pages):  # the first two are headers
        page[18:22] = (number if number < 2 else 1000 + number).to_bytes(4, "little")
        page[22:26] = checksum(page).to_bytes(4, "little")
    path.write_bytes(b"".join(pages))
    assert losses(path) == []
    path.write_bytes(b"".join(pages[:5] + pages[6:]))
    assert len(losses(path)) == 1


def test_joined_mp3s_are_read_to_the_end_of_the_last(tmp_path, caplog):
    path = tmp_path / "x.mp3"
    mp3(path, options={"b": "128k"}, form={}, frames=100_000)
    path.write_bytes(path.read_bytes() * 3)
    found = sum(block.shape[-1] for block in audio.stream(path))
    assert 295_000 < found < 310_000
    assert "are damaged or no audio and were skipped" in caplog.text


def test_a_flac_of_unknown_length_is_read_to_its_end(tmp_path):
    path = tmp_path / "x.flac"
    audio.write(path, noise(2, 50_000), samplerate=44_100)
    expected = audio.read(path)[0]
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert (audio.read(path)[0] == expected).all()
    assert audio.info(path).frames == 50_000


def test_raw_aac_has_no_length(tmp_path):
    path = tmp_path / "x.aac"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44_100, layout="stereo")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(tones().numpy(), format="fltp", layout="stereo")
        frame.sample_rate = 44_100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert 44_100 <= sum(block.shape[-1] for block in audio.stream(path)) < 48_000
    cut(path, 0.5)
    assert 20_000 < sum(block.shape[-1] for block in audio.stream(path)) < 24_000
