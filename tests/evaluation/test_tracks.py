"""Which tracks of a data set are scored."""

import shutil
from functools import partial

import pytest

from demucs_lightning.data import FolderTracks, MusdbHQ
from demucs_lightning.data.demo import MARKER
from demucs_lightning.evaluation.tracks import guessed, of_dataset, of_settings, open_set
from tests.audio.sounds import stempeg_song
from tests.evaluation.songs import make_set, stems, write


def names(found) -> list[str]:
    return [track.name for track in found.tracks]


def test_a_data_set_is_recognised(musdb_root, tmp_path):
    assert guessed(musdb_root) == "musdb18hq"
    assert guessed(make_set(tmp_path / "songs")) == "folder"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / MARKER).touch()
    assert guessed(tmp_path / "demo") == "demo"
    for part in ("train", "test"):
        (tmp_path / "seven" / part).mkdir(parents=True)
        shutil.copy(stempeg_song(), tmp_path / "seven" / part)
    assert guessed(tmp_path / "seven") == "musdb7s"
    found = open_set("musdb7s", tmp_path / "seven", subset=None)
    assert names(found) == ["The Easton Ellises - Falcon 69"]
    assert found.name == "Musdb7s"
    assert not list((tmp_path / "seven").rglob("*.wav"))  # nothing is converted


def test_musdb_has_its_subsets(musdb_root):
    found = open_set("musdb18hq", musdb_root, subset=None)
    assert (found.name, found.subset) == ("MusdbHQ", "test")
    assert names(found) == ["Dan - Four", "Eve - Five"]
    found = open_set("musdb18hq", musdb_root, subset="validation")
    assert names(found) == ["ANiMAL - Rockshow", "Leaf - Summerghost"]
    same = of_dataset(MusdbHQ(musdb_root, "validation", samplerate=8000), "validation")
    assert same == found


def test_a_folder_has_its_test_songs_or_all(tmp_path):
    root = make_set(tmp_path / "songs")
    write(root / "train" / "Cem", stems(1.0, seed=9))
    found = open_set("folder", root, subset=None)
    assert names(found) == ["test/Ann - One", "test/Bob - Two"]
    assert found.sources == ["bass", "vocals"]
    assert len(open_set("folder", root, subset="all").tracks) == 3
    flat = open_set("folder", root / "test", subset=None)
    assert (flat.subset, names(flat)) == ("all", ["Ann - One", "Bob - Two"])


def test_tracks_are_chosen_by_name(tmp_path):
    found = open_set("folder", make_set(tmp_path), subset=None)
    assert names(found.chosen(["bob*"])) == ["test/Bob - Two"]
    assert names(found.chosen(["Ann - One"])) == ["test/Ann - One"]
    assert names(found.chosen(["test/*"])) == names(found)
    with pytest.raises(
        ValueError, match="no track is called that: the tracks are 'test/Ann - One'"
    ):
        found.chosen(["Ann"])


@pytest.mark.parametrize(
    ("kind", "subset", "said"),
    [
        ("musdb", None, "dset is 'musdb': it must be one of musdb18hq, musdb7s, folder, demo"),
        ("folder", "tset", "subset is 'tset': it must be one of test,"),
        ("musdb18hq", "all", "subset is all: MUSDB18-HQ has test"),
        ("musdb18hq", None, "No test tracks of MUSDB18-HQ"),
        ("folder", None, "No tracks in"),
        ("folder", "all", "No tracks in"),
    ],
)
def test_mistakes_are_told(tmp_path, kind, subset, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        open_set(kind, tmp_path, subset=subset)


def test_the_settings_of_a_run_name_their_tracks_without_converting_them(musdb_root, tmp_path):
    root = make_set(tmp_path / "songs")
    for seed, name in enumerate(("Cem", "Dora")):
        write(root / "train" / name, stems(1.0, seed=seed))
    dset = partial(FolderTracks, root=root, sources=["vocals"])
    found = of_settings(dset, "test")
    assert (found.name, found.sources, found.place) == ("songs", ["vocals"], str(root))
    assert names(found) == names(of_dataset(dset(subset="test"), "test"))
    found = of_settings(partial(MusdbHQ, root=musdb_root, download=False), "test")
    assert found == open_set("musdb18hq", musdb_root, subset=None)
    lacking = shutil.copytree(musdb_root, tmp_path / "lacking")
    (lacking / "test" / "Dan - Four" / "drums.wav").unlink()
    bad = of_settings(partial(MusdbHQ, root=lacking), "test")
    assert (names(bad), bad.names) == (["Eve - Five"], ["Dan - Four", "Eve - Five"])
    assert "drums.wav is missing" in str(bad.faults["Dan - Four"])
    with pytest.raises(ValueError, match="subset is all"):
        of_settings(partial(MusdbHQ, root=musdb_root), "all")


def test_a_track_without_stems_is_a_fault(tmp_path):
    root = make_set(tmp_path / "songs")
    write(root / "test" / "Cem", {"mixture": stems(1.0, seed=1)["bass"]})
    found = open_set("folder", root, subset=None)
    assert names(found) == ["test/Ann - One", "test/Bob - Two"]
    assert "has none of the stems bass, vocals" in str(found.faults["test/Cem"])
    assert found.only(["test/Cem"]).names == found.chosen(["cem"]).names == ["test/Cem"]


def test_only_tracks_in_files_can_be_scored():
    with pytest.raises(ValueError, match="list has no tracks that lie in files"):
        of_dataset([], "test")
