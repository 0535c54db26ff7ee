"""`unpack`: whole or not at all, and never outside its folder."""

import shutil
import stat
import zipfile

import numpy as np
import pytest

from demucs_lightning.data import disk
from demucs_lightning.data.archive import unpack

FILES = {
    "train/A - One/drums.wav": b"d" * 5000,
    "train/A - One/Ü (feat. X): mix.wav": b"m",
    "train/B/bass.wav": b"",
    "test/C/vocals.wav": np.random.default_rng(0).bytes(3_000),
}


def make(path, files, *, folders=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in folders:
            file.writestr(name, b"")
        for name, content in files.items():
            file.writestr(name, content)
    return path


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def zipped(tmp_path):
    return make(tmp_path / "set.zip", FILES, folders=["train/", "train/Empty/"])


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data" / "set"


def test_unpack_writes_all_files_and_folders(zipped, folder):
    unpack(zipped, folder)
    assert contents(folder) == FILES
    assert (folder / "train" / "Empty").is_dir()
    assert sorted(path.name for path in folder.iterdir()) == ["test", "train"]


def test_other_things_in_the_folder_stay(zipped, folder):
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_bytes(b"mine")
    unpack(zipped, folder)
    assert contents(folder) == {**FILES, "notes.txt": b"mine"}


def test_unpacking_again_changes_nothing(zipped, folder):
    unpack(zipped, folder)
    (folder / "train" / "index.json").write_bytes(b"{}")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    unpack(zipped, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_what_a_killed_run_left_is_completed(zipped, folder):
    unpack(zipped, folder)
    (folder / "test" / "C" / "vocals.wav").unlink()
    (folder / "test" / "C").rmdir()
    (folder / "test").rmdir()
    staging = folder / ".set.zip.unpacking" / "test"
    staging.mkdir(parents=True)
    (staging / "half").write_bytes(b"x")
    unpack(zipped, folder)
    assert contents(folder) == FILES


@pytest.mark.parametrize("content", [b"another size", None])
def test_nothing_is_overwritten(zipped, folder, content):
    (folder / "test" / "C").mkdir(parents=True)
    if content is not None:
        (folder / "test" / "C" / "vocals.wav").write_bytes(content)
    before = contents(folder)
    with pytest.raises(FileExistsError, match=r"test is there already, .*vocals\.wav: move"):
        unpack(zipped, folder)
    assert contents(folder) == before


@pytest.mark.parametrize(
    "name",
    ["../out.wav", "train/../../out.wav", "/out.wav", "C:/out.wav", "train\\..\\out.wav", ".."],
)
def test_names_that_lead_out_are_refused_before_anything_is_written(tmp_path, folder, name):
    zipped = make(tmp_path / "set.zip", {"train/A/a.wav": b"a", name: b"out"})
    with pytest.raises(ValueError, match=r"set\.zip holds the name "):
        unpack(zipped, folder)
    assert not folder.exists()
    assert contents(tmp_path).keys() == {"set.zip"}


def test_links_are_refused(tmp_path, folder):
    link = zipfile.ZipInfo("train/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    zipped = make(tmp_path / "set.zip", {"train/a": b"a", link: b"/etc"})
    with pytest.raises(ValueError, match=r"'train/link', which is neither a file nor a folder"):
        unpack(zipped, folder)
    assert not folder.exists()


def test_an_archive_larger_than_the_disk_is_refused(zipped, folder, monkeypatch):
    def refuse(path, needed, *, purpose):
        assert needed == sum(map(len, FILES.values()))
        raise OSError("no room")

    monkeypatch.setattr(disk, "check_space", refuse)
    with pytest.raises(OSError, match="no room"):
        unpack(zipped, folder)
    assert not folder.exists()


def test_a_disk_that_fills_up_leaves_nothing(zipped, folder, monkeypatch):
    (folder / "mine").mkdir(parents=True)
    whole_write, written = disk.write, []

    def write(file, chunk, *, missing):
        written.append(missing)
        if len(written) > 1:
            raise OSError("the disk is full")
        whole_write(file, chunk, missing=missing)

    monkeypatch.setattr(disk, "write", write)
    with pytest.raises(OSError, match="the disk is full"):
        unpack(zipped, folder)
    assert written == [sum(map(len, FILES.values())), sum(map(len, FILES.values())) - 5000]
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_an_archive_that_is_not_there(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"there is no archive .*none\.zip"):
        unpack(tmp_path / "none.zip", folder)


def test_a_damaged_archive_is_one_sentence_and_leaves_nothing(zipped, folder):
    """Cut short or with a bit turned anywhere: unpacked whole, or refused, never half."""
    whole = zipped.read_bytes()
    generator = np.random.default_rng(1)
    damaged = [whole[: len(whole) // 2], whole[:-1], b"", b"<html>no</html>"]
    for position in generator.choice(len(whole), 150, replace=False):
        turned = bytearray(whole)
        turned[position] ^= 1 << generator.integers(8)
        damaged.append(bytes(turned))
    errors = []
    for content in damaged:
        zipped.write_bytes(content)
        try:
            unpack(zipped, folder)
        except ValueError as error:
            errors.append(str(error))
            assert not folder.exists()
        else:  # a bit of a date, or of a name
            assert sorted(contents(folder).values()) == sorted(FILES.values())
            shutil.rmtree(folder)
    assert len(errors) > 100
    assert all(str(zipped) in error and "\n" not in error for error in errors)
