"""What is written is what was given, all of it or nothing, in every format."""

import math
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
import torch

from demucs_lightning import audio
from demucs_lightning.audio import AudioInfo, Encoding
from tests.audio.sounds import RATE, noise, same_sound, tones


@pytest.mark.parametrize(("suffix", "channels"), [(".wav", 1), (".wav", 5), (".flac", 2)])
def test_integers_survive_a_round_trip(tmp_path, suffix, channels):
    steps = torch.randint(-(2**15), 2**15, (channels, 999), dtype=torch.int16)
    for number, samples in enumerate((steps, steps / 2**15)):
        path = tmp_path / f"{number}{suffix}"
        audio.write(path, samples, samplerate=RATE)
        found, rate = audio.read(path)
        assert rate == RATE
        assert found.dtype == torch.float32
        assert torch.equal(found, steps / 2**15)
        assert audio.info(path) == AudioInfo(RATE, channels, 999, "PCM_16")
        assert soundfile.info(path).subtype == "PCM_16"


def test_floats_keep_what_lies_beyond_full_scale(tmp_path):
    loud = noise() * 5
    audio.write(tmp_path / "loud.wav", loud, samplerate=RATE, subtype="FLOAT")
    assert torch.equal(audio.read(tmp_path / "loud.wav")[0], loud)


@pytest.mark.parametrize(("subtype", "scale"), [("PCM_16", 2**15), ("PCM_24", 2**23)])
def test_pcm_rounds_to_the_nearest_step_and_saturates(tmp_path, subtype, scale):
    samples = torch.tensor([[-2.0, -1.0, -0.7 / scale, 0.4 / scale, 0.6 / scale, 1.0, 3.0]])
    audio.write(tmp_path / "x.wav", samples, samplerate=RATE, subtype=subtype)
    expected = [-scale, -scale, -1, 0, 1, scale - 1, scale - 1]
    assert (audio.read(tmp_path / "x.wav")[0][0].double() * scale).tolist() == expected


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_no_number_is_not_written(tmp_path, wrong):
    path = tmp_path / "x.wav"
    audio.write(path, noise(), samplerate=RATE)
    before = path.read_bytes()
    samples = noise()
    samples[1, 7] = wrong
    with pytest.raises(ValueError, match=r"x\.wav is not written: the audio holds NaN"):
        audio.write(path, samples, samplerate=RATE, subtype="FLOAT")
    assert path.read_bytes() == before


@pytest.fixture
def _full_disk() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("_full_disk")
def test_a_full_disk_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match=r"x\.wav can't be written"):
        audio.write(tmp_path / "x.wav", noise(), samplerate=RATE)
    assert not list(tmp_path.iterdir())


def write_blocks(path: Path, *blocks: torch.Tensor, rate: int = 48_000, subtype: str | None = None):
    how = Encoding(subtype=subtype)
    with audio.writer(path, samplerate=rate, channels=2, encoding=how) as to:
        for block in blocks:
            to.write(block)


SUFFIXES = sorted(suffix for suffix in audio.FORMATS if suffix != ".stem.mp4")
DEPTHS = [(suffix, subtype) for suffix, form in audio.FORMATS.items() for subtype in form.subtypes]


@pytest.mark.parametrize("channels", [1, 2, 6, 8])
@pytest.mark.parametrize(("suffix", "subtype"), DEPTHS)
def test_blocks_of_any_length_make_up_a_file(tmp_path, suffix, subtype, channels):
    path, samples = tmp_path / f"x{suffix}", noise(channels, 9001)
    how = Encoding(subtype=subtype)
    with audio.writer(path, samplerate=44_100, channels=channels, encoding=how) as to:
        for block in (samples[:, :1], samples[:, 1:1], samples[:, 1:5000], samples[:, 5000:]):
            to.write(block)
        assert not path.exists()
    assert to.frames == 9001
    found, rate = audio.read(path)
    steps = {"PCM_16": 2**15, "PCM_24": 2**23, "PCM_32": 2**31}.get(subtype)
    expected = (samples.double() * steps).round() / steps if steps else samples
    assert torch.equal(found, expected.float())
    assert rate == 44_100
    assert audio.info(path).subtype == audio.subtype_of(path, how) == subtype


@pytest.mark.parametrize("suffix", [".mp3", ".m4a", ".ogg", ".opus"])
def test_lossy_formats(tmp_path, suffix):
    path, samples = tmp_path / f"x{suffix}", tones(2, 100_000)
    with audio.writer(path, samplerate=44_100, channels=2) as to:
        for block in samples.split(7001, dim=-1):
            to.write(block)
    found = torch.cat(list(audio.stream(path, samplerate=44_100)), dim=-1)
    extra = found.shape[-1] - samples.shape[-1]
    assert 0 <= extra < 1024 if suffix == ".m4a" else extra == 0
    middle = slice(20_000, 80_000)
    assert (found[:, middle] - samples[:, middle]).abs().max() < 0.02
    assert audio.subtype_of(path) is None


@pytest.mark.parametrize(("name", "rate"), [("x.mp3", 96_000), ("x.opus", 44_100)])
def test_rates_that_a_format_lacks_are_converted(tmp_path, name, rate):
    samples = tones(2, 2 * rate, rate=rate)
    with audio.writer(tmp_path / name, samplerate=rate, channels=2) as to:
        for block in samples.split(10_007, dim=-1):
            to.write(block)
    found, file_rate = audio.read(tmp_path / name)
    assert file_rate == to.file_samplerate == 48_000
    assert found.shape[-1] == 2 * 48_000
    assert same_sound(found, tones(2, 96_000, rate=48_000)) > 0.999


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("error", [ValueError("own"), KeyboardInterrupt()])
@pytest.mark.parametrize("written", [0, 5])
def test_an_error_leaves_what_was_there(tmp_path, suffix, error, written):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"before")

    def fail() -> None:
        with audio.writer(path, samplerate=48_000, channels=2) as to:
            for _ in range(written):
                to.write(noise(2, 10_000))
            raise error

    with pytest.raises(type(error)):
        fail()
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"before"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.usefixtures("_full_disk")
def test_a_full_disk_leaves_nothing_of_any_format(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    with pytest.raises(OSError, match=rf"^{path} can't be written \(.+\)\.$"):
        write_blocks(path, *[noise(2, 10_000)] * 20)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_places_that_can_not_be_written(tmp_path, suffix):
    (tmp_path / "file").write_text("x")
    path = tmp_path / "file" / f"x{suffix}"
    with (
        pytest.raises(OSError, match=rf"^{path} can't be written \(.+\)\.$"),
        audio.writer(path, samplerate=48_000, channels=2),
    ):
        pass


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_of_that_name_stays(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    path.mkdir()
    with pytest.raises(OSError, match=rf"^{path} can't be written \(.+\)\.$"):
        write_blocks(path, noise(2, 10_000))
    assert list(tmp_path.rglob("*")) == [path]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_is_no_file(tmp_path, suffix):
    with (
        pytest.raises(ValueError, match=rf"x\{suffix} is not written: it would hold no sample"),
        audio.writer(tmp_path / f"x{suffix}", samplerate=48_000, channels=2) as to,
    ):
        to.write(noise(2, 0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.mp3", "x.ogg", "x.m4a"])
def test_peaks_are_not_lost_unsaid(tmp_path, name):
    samples = noise(2, 9000) * 0.9
    samples[1, 6000] = -1.5
    message = rf"{name} is not written: the audio holds values beyond full scale.* second 0\.125"
    with pytest.raises(ValueError, match=message):
        write_blocks(tmp_path / name, *samples.split(999, dim=-1))
    assert not list(tmp_path.iterdir())
    with audio.writer(tmp_path / name, samplerate=48_000, channels=2, clip=True) as to:
        to.write(samples)
    found = audio.read(tmp_path / name)[0]
    if name in ("x.wav", "x.flac"):
        expected = (samples * 2**15).round().clamp(-(2**15), 2**15 - 1) / 2**15
        assert torch.equal(found, expected)


def test_full_scale_itself_is_written(tmp_path):
    with audio.writer(tmp_path / "x.wav", samplerate=RATE, channels=1) as to:
        to.write(torch.tensor([[1.0, -1.0, 0.0]]))
    assert (audio.read(tmp_path / "x.wav")[0] * 2**15).tolist() == [[32767, -32768, 0]]


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_what_is_no_number_is_named_with_its_time(tmp_path, subtype):
    samples = noise(2, 9000)
    samples[0, 4000] = math.nan
    message = r"x\.wav is not written: .* NaN .* at second 0\.500\."
    with pytest.raises(ValueError, match=message):
        write_blocks(tmp_path / "x.wav", *samples.split(3000, -1), rate=RATE, subtype=subtype)
    assert not list(tmp_path.iterdir())


def test_blocks_of_another_shape_are_refused(tmp_path):
    for block in (noise(1), noise(3), noise(2)[0]):
        with (
            pytest.raises(ValueError, match=r"x\.wav takes blocks of shape \(2, t\), not \("),
            audio.writer(tmp_path / "x.wav", samplerate=RATE, channels=2) as to,
        ):
            to.write(block)
    with pytest.raises(ValueError, match=r"x\.wav is not open"):
        audio.writer(tmp_path / "x.wav", samplerate=RATE, channels=2).write(noise())


def test_the_blocks_given_are_not_changed(tmp_path):
    for name in ("x.wav", "x.mp3", "x.ogg"):
        samples = noise() * 1.5
        before = samples.clone()
        audio.write(tmp_path / name, samples, samplerate=RATE)
        assert torch.equal(samples, before)


def test_the_same_audio_gives_the_same_file(tmp_path):
    for suffix in SUFFIXES:
        for name in ("a", "b"):
            audio.write(tmp_path / f"{name}{suffix}", tones(), samplerate=44_100)
        first, second = ((tmp_path / f"{name}{suffix}").read_bytes() for name in "ab")
        assert suffix in (".ogg", ".opus") or first == second, suffix  # Ogg's serial is random
