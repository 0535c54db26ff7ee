"""Native Instruments' stem files: what was put in, and what players look for."""

import json
from itertools import pairwise

import av
import pytest
import torch

from demucs_lightning import audio
from demucs_lightning.audio import StemWriter
from demucs_lightning.audio.stem_file import find_box, insert_box
from tests.audio.sounds import same_sound, stempeg_song, tones

STEMS = ["drums", "bass", "other", "vöcals"]


def five(frames: int = 88_200) -> torch.Tensor:
    """(5, 2, T), each stream with its own tones, and the first their sum."""
    stems = tones(8, frames).reshape(4, 2, frames) / 4
    return torch.cat([stems.sum(0, keepdim=True), stems])


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "x.stem.mp4"
    with StemWriter(path, samplerate=44_100, channels=2, stems=STEMS) as to:
        for block in five().split(30_000, dim=-1):
            to.write(block)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    return path


def test_every_stream_comes_back(path):
    for number, expected in enumerate(five()):
        found = torch.cat(list(audio.stream(path, stream=number)), dim=-1)
        assert 88_200 <= found.shape[-1] < 88_200 + 1024
        assert same_sound(found, expected) > 0.99
    with av.open(str(path)) as container:
        assert len(container.streams.audio) == 5
        enabled = [bool(s.disposition & s.disposition.default) for s in container.streams.audio]
        assert enabled == [True, False, False, False, False]
        assert container.metadata["major_brand"] == "M4A "


def test_the_box_is_what_native_instruments_writes(path):
    def shape(value):
        return {k: shape(v) for k, v in value.items()} if isinstance(value, dict) else type(value)

    own, theirs = (
        json.loads(find_box(file, b"moov", b"udta", b"stem")) for file in (path, stempeg_song())
    )
    assert own["version"] == theirs["version"] == 1
    assert own["mastering_dsp"].keys() == theirs["mastering_dsp"].keys()
    for part, settings in own["mastering_dsp"].items():
        assert settings.keys() == theirs["mastering_dsp"][part].keys()
        assert settings["enabled"] is False
    assert [shape(stem) for stem in own["stems"]] == [shape(stem) for stem in theirs["stems"]]
    assert [stem["name"] for stem in own["stems"]] == STEMS
    assert [stem["color"] for stem in own["stems"]] == [s["color"] for s in theirs["stems"]]


def test_names_of_stems(path, tmp_path):
    assert audio.stem_names(path) == STEMS
    assert audio.stem_names(stempeg_song()) == ["Drums", "Bass", "Other", "Vox"]
    audio.write(tmp_path / "x.wav", tones(), samplerate=44_100)
    assert audio.stem_names(tmp_path / "x.wav") == []


@pytest.mark.parametrize("tagged", [True, False])
def test_a_box_moves_no_sample(tmp_path, tagged):
    file = tmp_path / "x.m4a"
    with av.open(str(file), "w", format="mp4") as container:
        container.metadata["title"] = "x" if tagged else ""
        stream = container.add_stream("aac", rate=44_100, layout="stereo")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(tones().numpy(), format="fltp", layout="stereo")
        frame.sample_rate = 44_100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    before, size = audio.read(file)[0], file.stat().st_size
    insert_box(file, b"stem", b"abc")
    insert_box(file, b"more", b"defg")
    assert torch.equal(audio.read(file)[0], before)
    assert file.stat().st_size == size + 8 + 3 + 8 + 4
    assert find_box(file, b"moov", b"udta", b"stem") == b"abc"
    assert find_box(file, b"moov", b"udta", b"more") == b"defg"
    with pytest.raises(KeyError):
        find_box(file, b"moov", b"udta", b"none")


def test_a_moov_in_front_is_left_alone(tmp_path):
    (tmp_path / "x.mp4").write_bytes(stempeg_song().read_bytes())
    with pytest.raises(ValueError, match="moov is not its end"):
        insert_box(tmp_path / "x.mp4", b"stem", b"abc")


def test_mistakes(tmp_path):
    def wanted(name: str, stems: list[str]) -> StemWriter:
        return StemWriter(tmp_path / name, samplerate=44_100, channels=2, stems=stems)

    with pytest.raises(ValueError, match=r"x\.mp4 can't hold stems: its name must end in \.stem"):
        wanted("x.mp4", STEMS)
    with pytest.raises(ValueError, match="it would hold no stem"):
        wanted("x.stem.mp4", [])
    with (
        pytest.raises(ValueError, match=r"of shape \(5, 2, t\), not \(4, 2, 9\)"),
        wanted("x.stem.mp4", STEMS) as to,
    ):
        to.write(torch.zeros(4, 2, 9))
    assert not list(tmp_path.iterdir())


def test_other_rates_are_converted(tmp_path):
    path = tmp_path / "x.stem.mp4"
    with StemWriter(path, samplerate=96_000, channels=1, stems=["a"]) as to:
        to.write(tones(2, 96_000, rate=96_000)[:, None])
    lengths = [audio.info(path, number).frames for number in range(2)]
    assert audio.info(path).samplerate == to.file_samplerate == 48_000
    assert all(a == b and 48_000 <= a < 49_024 for a, b in pairwise(lengths))
    assert same_sound(audio.read(path, stream=1)[0], tones(2, 48_000, rate=48_000)[1:]) > 0.99
