"""What is read is what is in the file, and no damaged file passes for a sound one."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from demucs_lightning import audio
from demucs_lightning.audio import AudioInfo
from tests.audio.sounds import RATE, encode, noise, same_sound, stempeg_song, tones


@pytest.mark.parametrize(("start", "frames"), [(0, 10), (4000, 500), (4900, 500), (9000, 5)])
def test_reading_a_part(tmp_path, start, frames):
    samples = noise()
    audio.write(tmp_path / "x.wav", samples, samplerate=RATE, subtype="FLOAT")
    part = audio.read(tmp_path / "x.wav", start=start, frames=frames)[0]
    assert torch.equal(part, samples[:, start : start + frames])


@pytest.mark.parametrize("size", [1000, 1250, 7000])
def test_blocks_make_up_the_file(tmp_path, size):
    samples = noise()
    audio.write(tmp_path / "x.flac", samples, samplerate=RATE)
    blocks = list(audio.blocks(tmp_path / "x.flac", size=size))
    assert [block.shape[-1] for block in blocks[:-1]] == [size] * (len(blocks) - 1)
    assert torch.equal(torch.cat(blocks, dim=-1), audio.read(tmp_path / "x.flac")[0])


def test_streams_of_a_stem_file():
    path = stempeg_song()
    streams = [audio.read(path, stream=number)[0] for number in range(5)]
    assert all(
        audio.info(path, number) == AudioInfo(44100, 2, 268288, "aac") for number in range(5)
    )
    assert all(stream.shape == (2, 268288) for stream in streams)
    mixture, *stems = streams
    total = torch.stack(stems).sum(0)
    assert torch.corrcoef(torch.stack([mixture.flatten(), total.flatten()]))[0, 1] > 0.98
    assert all(float(stem.std()) > 1e-3 for stem in stems)
    part = audio.read(path, start=100_000, frames=999, stream=2)[0]
    assert torch.equal(part, streams[2][:, 100_000:100_999])
    blocks = list(audio.blocks(path, size=100_000, stream=4))
    assert [block.shape[-1] for block in blocks] == [100_000, 100_000, 68_288]
    assert torch.equal(torch.cat(blocks, dim=-1), streams[4])
    with pytest.raises(ValueError, match=r"stem\.mp4 has 5 audio streams, so none is number 5"):
        audio.info(path, 5)


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".m4a", "aac"), (".mp3", "mp3"), (".ogg", "vorbis")]
)
def test_lossy_formats(tmp_path, suffix, codec):
    samples = tones()
    path = tmp_path / f"x{suffix}"
    if suffix == ".m4a":
        encode(path, samples, "aac")
    else:
        soundfile.write(path, samples.T.numpy(), 44100)
    found, rate = audio.read(path)
    assert audio.info(path) == AudioInfo(44100, 2, found.shape[-1], codec)
    assert rate == 44100
    assert abs(found.shape[-1] - 44100) < 4410
    assert same_sound(found, samples) > 0.99


def damage(path: Path, how: str) -> None:
    """Make of `path` a file that is damaged in a certain way."""
    if how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("this is no audio " * 100)
    elif how == "no samples":
        soundfile.write(path, np.zeros((0, 2)), RATE)
    elif how == "truncated":
        if path.suffix == ".mp4":
            path.write_bytes(stempeg_song().read_bytes())
        else:
            soundfile.write(path, noise(2, 50_000).T.numpy(), 44100)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("x.wav", "missing", "is not there"),
        ("x.wav", "empty", "is empty (0 bytes)"),
        ("x.wav", "text", "can't be decoded"),
        ("x.wav", "no samples", "its length is 0 samples"),
        ("x.wav", "truncated", "its header promises 50000 samples, the file holds 24994"),
        ("x.flac", "text", "can't be decoded"),
        ("x.flac", "truncated", "x.flac"),
        ("x.mp3", "truncated", "is truncated"),
        ("x.m4a", "missing", "is not there"),
        ("x.m4a", "empty", "is empty (0 bytes)"),
        ("x.m4a", "text", "can't be decoded"),
        ("x.stem.mp4", "truncated", "is truncated"),
    ],
)
@pytest.mark.parametrize("reader", [audio.read, lambda path: list(audio.blocks(path))])
def test_damaged_files_are_named_in_one_sentence(tmp_path, name, how, message, reader):
    path = tmp_path / name
    damage(path, how)
    if how == "no samples" and reader is not audio.read:
        assert reader(path) == []
        return
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        reader(path)
    text = str(caught.value)
    assert message in text
    assert str(path) in text
    assert "\n" not in text


def silent_film(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        for _ in range(5):
            container.mux(stream.encode(picture.reformat(format="yuv420p")))
        container.mux(stream.encode(None))


READERS = [
    audio.info,
    audio.read,
    lambda path: list(audio.blocks(path)),
    lambda path: list(audio.stream(path)),
]


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_recording(tmp_path, reader):
    (tmp_path / "x.wav").mkdir()
    with pytest.raises(FileNotFoundError, match=r"x\.wav is a folder: an audio file was expected"):
        reader(tmp_path / "x.wav")
    silent_film(tmp_path / "x.mp4")
    with pytest.raises(ValueError, match=r"x\.mp4 has no sound: no stream in it is audio\.$"):
        reader(tmp_path / "x.mp4")
    audio.write(tmp_path / "x.flac", noise(), samplerate=RATE)
    with pytest.raises(ValueError, match=r"x\.flac has 1 audio streams, so none is number 2\.$"):
        list(audio.stream(tmp_path / "x.flac", stream=2))


def test_a_film_has_a_sound(tmp_path):
    samples = tones()
    with av.open(str(tmp_path / "x.mkv"), "w") as container:
        picture, sound = (
            container.add_stream("mpeg4", rate=10),
            container.add_stream("flac", 44_100),
        )
        assert isinstance(picture, av.VideoStream)
        assert isinstance(sound, av.AudioStream)
        picture.width = picture.height = 32
        picture.pix_fmt = "yuv420p"
        black = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        for number in range(50):  # longer than the sound, which is no damage
            still = black.reformat(format="yuv420p")
            still.pts, still.time_base = number, Fraction(1, 10)
            container.mux(picture.encode(still))
        frame = av.AudioFrame.from_ndarray(samples.numpy(), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 44_100, 0, Fraction(1, 44_100)
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
        container.mux(picture.encode(None))
    found = torch.cat(list(audio.stream(tmp_path / "x.mkv")), dim=-1)
    assert 44_100 <= found.shape[-1] < 46_200
    assert same_sound(found, samples) > 0.99


@pytest.mark.parametrize("name", ["x.m4a", "x.wav", "x.mp3"])
def test_a_playlist_opens_nothing(tmp_path, name):
    audio.write(tmp_path / "secret.wav", noise(), samplerate=RATE)
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{tmp_path}/secret.wav\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile {tmp_path}/secret.wav\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://localhost:9/x.aac\n",
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=rf"{name} (can't be decoded|has no sound|holds no)"):
            audio.read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("x.wav", "ac3"),
        ("x.wav", "wmav2"),
        ("x.wav", "mp3"),
        ("x.wav", "adpcm_ms"),
        ("x.caf", "alac"),
    ],
)
def test_containers_with_other_codecs_inside(tmp_path, name, codec):
    encode(tmp_path / name, tones(), codec)
    found = torch.cat(list(audio.stream(tmp_path / name)), dim=-1)
    assert same_sound(found, tones()) > 0.99
    assert abs(found.shape[-1] - 44_100) < 4096
