"""Locks, and sizes for people."""

import fcntl
import multiprocessing
import os
import threading

import pytest

from demucs_lightning.data import disk


def _hold(folder, locked):
    with disk.locked(folder):
        locked.set()
        threading.Event().wait()


def test_a_killed_process_gives_the_lock_up(tmp_path):
    context = multiprocessing.get_context("fork")
    locked = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, locked))
    process.start()
    assert locked.wait(10)
    process.kill()
    process.join()
    with disk.locked(tmp_path):
        pass


def _is_locked(folder):
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


@pytest.mark.parametrize("is_back", [True, False])
def test_a_lock_is_of_the_folder_that_has_the_name(tmp_path, caplog, is_back):
    folder, seen = tmp_path / "songs", []

    def wait():
        with disk.locked(folder):
            seen.append(_is_locked(folder))

    other = threading.Thread(target=wait)
    with disk.locked(folder):
        other.start()
        while "waiting for it" not in caplog.text:
            other.join(0.01)
        folder.rename(tmp_path / "replaced")
        if is_back:
            folder.mkdir()
    other.join()
    assert seen == [True]


@pytest.mark.parametrize(
    ("size", "text"), [(12, "12 bytes"), (2_560_000, "2.6 MB"), (22_656_664_047, "22.7 GB")]
)
def test_amounts_are_for_people(size, text):
    assert disk.amount(size) == text
