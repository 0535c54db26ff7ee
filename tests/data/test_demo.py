import errno
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from demucs_lightning import audio
from demucs_lightning.data import Musdb7s, demo
from demucs_lightning.data.demo import MARKER, DemoSongs, make_demo_songs

SHORT = {"songs": (1, 1, 1), "seconds": 7.0}


def contents(root):
    """Path and bytes of every file below a folder, but the caches."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in files
        if not path.name.startswith(".")
    }


def samples(path):
    mapped = audio.memory_map(path)
    assert mapped is not None
    assert mapped.dtype == np.int16
    return mapped


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three short songs, to be read only."""
    return make_demo_songs(tmp_path_factory.mktemp("demo") / "songs", jobs=1, **SHORT)


@pytest.fixture
def quick(monkeypatch):
    """Songs of a tenth of a second of noise; returns a list that counts the recordings."""
    recorded = []

    def perform(song):
        recorded.append(song.plan)
        rng = np.random.Generator(np.random.PCG64(song.plan.seed))
        return rng.integers(-8000, 8000, size=(4, 2, 4410), dtype=np.int16)

    monkeypatch.setattr(demo, "perform", perform)
    return recorded


def test_layout(made):
    assert sorted(path.name for path in made.iterdir()) == sorted(
        [MARKER, "test", "train", "valid"]
    )
    for split in ("train", "valid", "test"):
        (song,) = (path for path in (made / split).iterdir() if path.is_dir())
        names = sorted(path.name for path in song.iterdir())
        assert names == ["bass.wav", "drums.wav", "mixture.wav", "other.wav", "vocals.wav"]
        for path in song.iterdir():
            found = audio.info(path)
            assert (found.samplerate, found.channels) == (44100, 2)
            assert 7 * 44100 < found.frames < 12 * 44100


def test_mixture_is_the_exact_sum_of_the_stems_and_never_clips(made):
    for mixture in made.rglob("mixture.wav"):
        stems = [samples(mixture.with_name(f"{name}.wav")) for name in demo.SOURCES]
        total = np.sum(stems, axis=0, dtype=np.int32)
        assert np.array_equal(total, samples(mixture))
        assert 0.89 < np.abs(total).max() / 2**15 < 0.91


def test_bytes_depend_on_the_seed_and_not_on_the_number_of_jobs(made, tmp_path):
    again = make_demo_songs(tmp_path / "again", jobs=3, **SHORT)
    assert contents(again) == contents(made)
    other = make_demo_songs(tmp_path / "other", seed=1, songs=(1, 0, 0), seconds=7.0)
    assert not set(contents(other).values()) & set(contents(made).values())


def test_data_set(made):
    extracts = DemoSongs(made, segment=1.0, shift=0.5)
    assert extracts[0]["stems"].shape == (4, 2, 44100)
    assert extracts[0]["stems"].dtype == torch.int16
    assert len(extracts) == np.ceil((extracts.tracks[0].duration - 1) / 0.5) + 1
    whole = DemoSongs(made, "test")[0]
    assert torch.equal(whole["mixture"], whole["stems"].sum(0))
    names = {DemoSongs(made, subset)[0]["track"] for subset in demo.SUBSETS}
    assert len(names) == 3
    duet = DemoSongs(made, "validation", sources=["vocals", "bass"])[0]
    everything = DemoSongs(made, "validation")[0]
    assert torch.equal(duet["stems"], everything["stems"][[3, 1]])


def test_data_set_makes_the_songs_once(quick, tmp_path):
    assert len(DemoSongs(tmp_path / "songs")) == 10
    assert len(quick) == 16
    assert len(DemoSongs(tmp_path / "songs", "validation")) == 2
    assert len(DemoSongs(tmp_path / "songs", "test")) == 4
    make_demo_songs(tmp_path / "songs")
    assert len(quick) == 16


def test_data_set_refuses_unknown_subsets_and_sources(made):
    with pytest.raises(ValueError, match="'train' is unknown: it is one of training, validation"):
        DemoSongs(made, "train")
    with pytest.raises(ValueError, match="'piano'"):
        DemoSongs(made, sources=["piano"])


def test_an_interrupted_recording_leaves_nothing(quick, tmp_path, monkeypatch):
    def interrupted(song):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "perform", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_demo_songs(tmp_path / "songs")
    assert list(tmp_path.iterdir()) == []


def test_what_killed_makers_left_is_removed(quick, tmp_path):
    mine = [tmp_path / ".songs-mine", tmp_path / ".others-1.draft"]
    for folder in [*mine, tmp_path / ".songs-x1.draft" / "draft"]:
        folder.mkdir(parents=True)
    root = make_demo_songs(tmp_path / "songs", songs=(1, 0, 0))
    assert set(tmp_path.iterdir()) == {root, *mine}


def test_makers_at_once_make_them_once(quick, tmp_path):
    make = partial(make_demo_songs, songs=(2, 1, 1))
    with ThreadPoolExecutor(4) as makers:
        roots = list(makers.map(make, [tmp_path / "songs"] * 4))
    assert len(quick) == 4
    assert set(tmp_path.iterdir()) == set(roots)


def test_a_song_that_fails_leaves_the_old_set(quick, tmp_path, monkeypatch):
    root = make_demo_songs(tmp_path / "songs", songs=(2, 1, 1))
    before = contents(root)
    write, calls = audio.write, []

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) > 7:
            raise OSError("No space left on device")
        write(*args, **kwargs)

    monkeypatch.setattr(audio, "write", full)
    with pytest.raises(OSError, match="No space left"):
        make_demo_songs(root, songs=(3, 1, 1))
    assert contents(root) == before
    assert list(tmp_path.iterdir()) == [root]


def test_a_set_of_another_version_is_replaced_with_its_settings(quick, tmp_path):
    root = make_demo_songs(tmp_path / "songs", songs=(1, 1, 1), seed=5)
    fresh = contents(root)
    marker = json.loads((root / MARKER).read_text())
    (root / MARKER).write_text(json.dumps(marker | {"version": 0}))
    (root / marker["files"][0]).write_bytes(b"old")
    (root / "train" / "notes.txt").write_text("mine")
    assert DemoSongs(root)[0]["mixture"].shape == (2, 4410)
    assert contents(root) == fresh | {"train/notes.txt": b"mine"}
    assert list(tmp_path.iterdir()) == [root]


def test_a_set_with_a_missing_file_is_made_again(quick, tmp_path):
    root = make_demo_songs(tmp_path / "songs", songs=(1, 1, 1))
    before = contents(root)
    next(root.rglob("bass.wav")).unlink()
    assert len(DemoSongs(root)) == 1
    assert contents(root) == before


@pytest.mark.parametrize("marker", [None, "{", "[]"])
def test_foreign_folders_are_refused_and_left_alone(quick, tmp_path, marker):
    (tmp_path / "train" / "My Song").mkdir(parents=True)
    (tmp_path / "train" / "My Song" / "bass.wav").write_bytes(b"mine")
    if marker:
        (tmp_path / MARKER).write_text(marker)
    before = contents(tmp_path)
    for make in (make_demo_songs, DemoSongs):
        with pytest.raises(FileExistsError, match="holds no demo songs"):
            make(tmp_path)
    assert contents(tmp_path) == before
    assert quick == []


@pytest.mark.parametrize("which", ["songs", "."])
@pytest.mark.parametrize("make", [DemoSongs, partial(Musdb7s, download=True)])
def test_a_disk_to_read_only_is_named(quick, tmp_path, monkeypatch, make, which):
    plain = tempfile.TemporaryFile

    def refused(**kwargs):
        if kwargs["dir"] == tmp_path / which:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(kwargs["dir"] / ".x"))
        return plain(**kwargs)

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    root = tmp_path / "songs" if make is DemoSongs else tmp_path / which
    said = rf"{tmp_path / which} can't be written \(Read-only file system\): set data_root to"
    with pytest.raises(OSError, match=said):
        make(root)
    assert quick == []


def test_a_mount_is_refused(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_mount", lambda self: self == tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path} is a mount: name a folder in it, such as"):
        make_demo_songs(tmp_path, songs=(1, 0, 0))
    assert make_demo_songs(tmp_path / "songs", songs=(1, 0, 0)).is_dir()
    assert len(quick) == 1


def test_an_empty_folder_will_do(quick, tmp_path):
    make_demo_songs(tmp_path, songs=(1, 0, 0))
    assert (tmp_path / MARKER).is_file()
