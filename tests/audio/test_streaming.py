"""A recording in blocks is the recording: at any rate, in any format, and in little memory."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch

from demucs_lightning import audio
from tests.audio.sounds import RATE, encode, noise, stempeg_song, tones

ROOT = Path(__file__).parents[2]


def joined(reader: audio.AudioReader) -> torch.Tensor:
    return torch.cat(list(reader), dim=-1)


@pytest.mark.parametrize("block", [1, 999, 10_000, 100_000])
def test_blocks_are_of_one_length_and_make_up_the_file(tmp_path, block):
    samples = noise(3, 20_001 if block > 1 else 50)
    audio.write(tmp_path / "x.wav", samples, samplerate=RATE, subtype="FLOAT")
    reader = audio.stream(tmp_path / "x.wav", block=block)
    assert (reader.samplerate, reader.channels, reader.frames) == (RATE, 3, samples.shape[-1])
    blocks = list(reader)
    assert {found.shape[-1] for found in blocks[:-1]} <= {block}
    assert 0 < blocks[-1].shape[-1] <= block
    assert torch.equal(torch.cat(blocks, dim=-1), samples)
    assert torch.equal(joined(reader), samples), "it can be iterated again"


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000, 192_000])
@pytest.mark.parametrize("old", [8000, 44_100, 192_000])
def test_rates_are_converted_as_in_one_go(tmp_path, old, rate):
    samples = noise(2, 30_011)
    audio.write(tmp_path / "x.wav", samples, samplerate=old, subtype="FLOAT")
    reader = audio.stream(tmp_path / "x.wav", block=4096, samplerate=rate)
    expected = audio.resample(samples, old=old, new=rate)
    found = joined(reader)
    assert found.shape == expected.shape
    assert 0 <= reader.frames - expected.shape[-1] <= (30_011 * 2 * rate // old) % 2
    assert (found - expected).abs().max() < 1e-6


@pytest.mark.parametrize(("found", "wanted"), [(1, 2), (2, 1), (5, 2), (2, 2), (8, 1)])
def test_channels_are_converted(tmp_path, found, wanted):
    samples = noise(found)
    audio.write(tmp_path / "x.wav", samples, samplerate=RATE, subtype="FLOAT")
    reader = audio.stream(tmp_path / "x.wav", samplerate=11_025, channels=wanted)
    expected = audio.resample(samples, old=RATE, new=11_025)
    assert (joined(reader) - audio.convert_channels(expected, wanted)).abs().max() < 1e-6
    assert reader.channels == wanted


def test_stereo_does_not_become_five(tmp_path):
    audio.write(tmp_path / "x.wav", noise(), samplerate=RATE)
    with pytest.raises(ValueError, match=r"x\.wav: 2 channels can't become 5"):
        audio.stream(tmp_path / "x.wav", channels=5)
    with pytest.raises(ValueError, match="block=0 frames"):
        audio.stream(tmp_path / "x.wav", block=0)


@pytest.mark.parametrize("stream", [0, 3])
def test_streams_of_a_stem_file(stream):
    reader = audio.stream(stempeg_song(), stream=stream, block=50_000)
    assert torch.equal(joined(reader), audio.read(stempeg_song(), stream=stream)[0])
    assert not reader.info.exact
    assert abs(reader.frames - 268_288) < 2048
    assert reader.info.subtype == "aac"


FORMATS = {"x.w64": "PCM_16", "x.rf64": "PCM_24", "x.caf": "PCM_16", "x.au": "PCM_16"}
FORMATS |= {"x.aiff": "PCM_24", "x.wav": "FLOAT", "x.flac": "PCM_24", "x.ogg": "VORBIS"}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_of_libsndfile(tmp_path, name):
    soundfile.write(tmp_path / name, noise().T.numpy(), RATE, subtype=FORMATS[name])
    reader = audio.stream(tmp_path / name)
    known = FORMATS[name] if FORMATS[name] != "VORBIS" else "vorbis"
    assert reader.info == audio.AudioInfo(RATE, 2, 5000, known)
    expected = torch.from_numpy(soundfile.read(tmp_path / name, dtype="float32")[0].T)
    assert torch.equal(joined(reader), expected)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("x.wma", "wmav2"), ("x.mka", "ac3"), ("x.aac", "aac"), ("x.mov", "alac"), ("x.m4a", "alac")],
)
def test_formats_of_ffmpeg(tmp_path, name, codec):
    samples = tones()
    encode(tmp_path / name, samples, codec)
    reader = audio.stream(tmp_path / name, block=10_000)
    found = joined(reader)
    assert reader.info.subtype == ("PCM_24" if codec == "alac" else codec)
    assert abs(found.shape[-1] - 44_100) < 8192
    assert found.std() > 0.3
    assert audio.info(tmp_path / name).frames == found.shape[-1]


def test_what_a_name_says_may_be_wrong(tmp_path):
    encode(tmp_path / "real.m4a", tones(), "aac")
    expected = audio.read(tmp_path / "real.m4a")[0]
    (tmp_path / "x.wav").write_bytes((tmp_path / "real.m4a").read_bytes())
    assert torch.equal(joined(audio.stream(tmp_path / "x.wav")), expected)
    soundfile.write(tmp_path / "real.flac", noise().T.numpy(), RATE)
    (tmp_path / "x.mp3").write_bytes((tmp_path / "real.flac").read_bytes())
    expected = audio.read(tmp_path / "real.flac")[0]
    assert torch.equal(joined(audio.stream(tmp_path / "x.mp3")), expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_what_is_no_number_is_refused_with_its_time(tmp_path, bad):
    samples = noise(2, 40_000)
    samples[1, 20_000:20_010] = bad
    samples[0, 30_000] = math.nan
    soundfile.write(tmp_path / "x.wav", samples.T.numpy(), RATE, subtype="FLOAT")
    reader = audio.stream(tmp_path / "x.wav", block=777, samplerate=11_025)
    what = "values beyond any sound \\(1e\\+30\\)" if bad == 1e30 else "NaN or infinite values"
    with pytest.raises(ValueError, match=rf"x\.wav holds {what} from second 2\.500"):
        list(reader)


@pytest.mark.parametrize("frames", [1, 2])
def test_the_shortest_recordings(tmp_path, frames):
    for name in ("x.wav", "x.flac", "x.aiff", "x.mp3", "x.ogg", "x.opus", "x.m4a"):
        samples = torch.full((2, frames), 0.25)
        audio.write(tmp_path / name, samples, samplerate=48_000)
        found = joined(audio.stream(tmp_path / name))
        assert found.shape[-1] >= frames, name
        assert found.shape[-1] == frames or name in ("x.m4a", "x.mp3"), name
        found = joined(audio.stream(tmp_path / name, samplerate=16_000))
        assert found.shape[-1] >= 1
        assert found.isfinite().all()


def test_no_samples_are_no_recording(tmp_path):
    soundfile.write(tmp_path / "x.wav", noise(2, 0).T.numpy(), RATE)
    with pytest.raises(ValueError, match=r"x\.wav holds no audio: its length is 0 samples\."):
        list(audio.stream(tmp_path / "x.wav"))


NAMES = [
    "Ümläut – 曲 🎵.wav",
    "AC:DC 100% #1 \\ 'x'.m4a",
    "-e\u0301.mp3",
    "пес ня.opus",
    "a" * 240 + ".flac",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name(tmp_path, name):
    path = tmp_path / name
    audio.write(path, tones(), samplerate=48_000)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert joined(audio.stream(path)).shape[-1] >= 44_100
    assert audio.info(path).channels == 2
    assert audio.tags(path).title == ""


def test_names_that_are_no_text(tmp_path):
    path = Path(str(tmp_path / "x") + "\udcff.m4a")  # the byte FF
    audio.write(path, tones(), samplerate=48_000)
    assert joined(audio.stream(path)).shape[-1] >= 44_100
    audio.write(path.with_suffix(".wav"), tones(), samplerate=48_000)
    assert torch.equal(
        joined(audio.stream(path.with_suffix(".wav"))), audio.read(path.with_suffix(".wav"))[0]
    )


MEASURE = """
import sys, torch
from demucs_lightning import audio
from tests.memory import peak
path, seconds = sys.argv[1], int(sys.argv[2])
block = torch.zeros(2, 48000).uniform_(-0.5, 0.5)
with audio.writer(path, samplerate=48000, channels=2) as to:
    for _ in range(seconds):
        to.write(block)
before = peak()
frames = sum(found.shape[-1] for found in audio.stream(path, samplerate=44100, channels=1))
print(frames, before, peak())
"""


@pytest.mark.parametrize("name", ["x.wav", "x.m4a"])
def test_memory_does_not_grow_with_length(tmp_path, name):
    peaks = []
    for seconds in (5, 50):
        command = [sys.executable, "-c", MEASURE, str(tmp_path / name), str(seconds)]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        frames, *kilobytes = map(int, done.stdout.split())
        assert abs(frames - seconds * 44_100) < 2048
        peaks.append(kilobytes)
    for short, long in zip(*peaks, strict=True):  # 45 s of stereo floats are 17 MB
        assert long - short < 8000
