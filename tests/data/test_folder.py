"""Any folder of tracks: which ones train and which validate, and what stems they may have."""

import random
from pathlib import Path

import pytest
import soundfile
import torch

from demucs_lightning import audio
from demucs_lightning.data import FolderTracks
from demucs_lightning.data.folder import split
from tests.audio.sounds import encode, stempeg_song

NAMES = {f"Song {number}" for number in range(20)}
ROOT = Path("root")
SUBSETS = ("training", "training_all", "validation", "test")


def parts(names: set[str], valid=None) -> tuple[set[str], ...]:
    return tuple(split(names, subset, valid, root=ROOT) for subset in SUBSETS)


def test_split_by_the_folders_there_are():
    train, valid, test = {"train/a", "train/b"}, {"valid/c"}, {"test/d"}
    every = train | valid | test | {"extra/e"}
    assert parts(every) == (train, train | valid, valid, test)
    assert parts(every - train) == ({"extra/e"}, {"extra/e", "valid/c"}, valid, test)
    assert parts(every, "extra")[:3] == (train, train | {"extra/e"}, {"extra/e"})


def test_split_by_a_list_of_names():
    chosen = {"Song 3", "Song 7"}
    assert parts(NAMES, ["Song 3", "Song 7"]) == (NAMES - chosen, NAMES, chosen, chosen)
    inside = {f"train/{name}" for name in NAMES}
    assert split(inside, "validation", ["Song 3"], root=ROOT) == {"train/Song 3"}
    assert split(inside, "validation", ["train/Song 3"], root=ROOT) == {"train/Song 3"}


@pytest.mark.parametrize(
    ("fraction", "count"), [(None, 2), (0.1, 2), (0.001, 1), (0.5, 10), (0.999, 19)]
)
def test_split_by_a_fraction(fraction, count):
    training, every, validation, _ = parts(NAMES, fraction)
    assert len(validation) == count
    assert (training | validation, training & validation) == (NAMES, set())
    assert every == NAMES
    shuffled = random.Random(0).sample(sorted(NAMES), len(NAMES))
    assert split(shuffled, "validation", fraction, root=ROOT) == validation
    assert split({*NAMES, "test/x"}, "validation", fraction, root=ROOT) == validation


def test_a_fraction_is_drawn_not_the_first_ones():
    assert split(NAMES, "validation", 0.1, root=ROOT) == {"Song 1", "Song 18"}


@pytest.mark.parametrize(
    ("names", "subset", "valid", "message"),
    [
        (NAMES, "training", 1.5, "valid=1.5 is no fraction"),
        (NAMES, "training", 0, "valid=0 is no fraction"),
        ({"one"}, "training", 0.5, "needs two tracks or more"),
        (NAMES, "training", "eval", "valid='eval' needs tracks in root/eval"),
        (NAMES, "training", ["Song 99"], "valid names 'Song 99', but there is no such track"),
        (NAMES, "training", [], "needs the names of tracks"),
        ({"a"}, "training", ["a"], "takes all tracks in root"),
    ],
)
def test_splits_that_cant_be(names, subset, valid, message):
    with pytest.raises(ValueError, match=message):
        split(names, subset, valid, root=ROOT)


def test_any_sources_and_missing_stems(tmp_path, song):
    song(tmp_path / "train" / "a", ["voice", "rest", "unused"])
    song(tmp_path / "train" / "b", ["voice", "mixture"])
    song(tmp_path / "valid" / "c", ["rest"])
    sources = ["rest", "voice"]
    dataset = FolderTracks(tmp_path, "training", sources, segment=0.5, samplerate=8000)
    assert [track.name for track in dataset.tracks] == ["train/a", "train/b"]
    assert dataset.tracks[1].files["rest"] is None
    both, alone = dataset[0]["stems"], dataset[1]["stems"]
    assert bool(both[0].any()) is True
    assert bool(alone[0].any()) is False
    assert torch.equal(alone[1] / 2**15, audio.read(tmp_path / "train" / "b" / "voice.wav")[0])
    (item,) = FolderTracks(tmp_path, "validation", sources, samplerate=8000)
    assert torch.equal(item["mixture"], item["stems"][0])
    assert item["track"] == "valid/c"


def test_any_format_rate_and_channel_count(tmp_path, song):
    frames = 44100
    song(tmp_path / "wav", ["vocals"], frames=frames, rate=44100)
    song(tmp_path / "flac", ["vocals"], frames=frames, rate=44100, suffix=".flac")
    song(tmp_path / "ogg", ["vocals"], frames=frames, rate=22050, subtype=None, suffix=".ogg")
    song(
        tmp_path / "mp3",
        ["vocals"],
        frames=frames,
        rate=48000,
        channels=1,
        subtype=None,
        suffix=".mp3",
    )
    (tmp_path / "m4a").mkdir()
    encode(tmp_path / "m4a" / "vocals.m4a", torch.randn(2, frames) / 10, "aac")
    (tmp_path / "stems.stem.mp4").write_bytes(stempeg_song().read_bytes())
    dataset = FolderTracks(tmp_path, "training_all", ["vocals"], valid=["wav"], segment=1)
    assert [track.name for track in dataset.tracks] == ["flac", "m4a", "mp3", "ogg", "stems", "wav"]
    assert {track.samplerate for track in dataset.tracks} == {22050, 44100, 48000}
    assert dataset.dtype == torch.float32
    for number in range(len(dataset)):
        item = dataset[number]
        assert item["stems"].shape == (1, 2, 44100)
        assert float(item["stems"].std()) > 0.01
    first = soundfile.read(tmp_path / "flac" / "vocals.flac", dtype="float32")[0]
    assert torch.equal(dataset[0]["stems"][0].T, torch.from_numpy(first))


def test_a_folder_without_audio_is_no_track(tmp_path, song):
    song(tmp_path / "a", ["voice"])
    song(tmp_path / "b", ["voice"])
    (tmp_path / "artwork").mkdir()
    dataset = FolderTracks(tmp_path, "training_all", ["voice"], samplerate=8000)
    assert [track.name for track in dataset.tracks] == ["a", "b"]


def test_what_is_missing_or_unknown_is_named(tmp_path, song):
    with pytest.raises(FileNotFoundError, match=rf"No tracks in {tmp_path}/none: folders with"):
        FolderTracks(tmp_path / "none", "training", ["voice"])
    song(tmp_path / "a", ["voice"])
    song(tmp_path / "b", ["piano", "mixture"])
    with pytest.raises(ValueError, match="has a stem 'drums': the stems there are piano, voice"):
        FolderTracks(tmp_path, "training", ["voice", "drums"])
    with pytest.raises(ValueError, match=r"/b has none of the stems voice: it holds mixture, pi"):
        FolderTracks(tmp_path, "training_all", ["voice"])
    with pytest.raises(ValueError, match="subset='valid' is unknown"):
        FolderTracks(tmp_path, "valid", ["voice"])
