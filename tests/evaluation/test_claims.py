"""Who works on what: claims of this process, of others, and of those that died."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from demucs_lightning.evaluation import claims as claims_module
from demucs_lightning.evaluation.claims import Claims, host


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "claims"


def left_by(folder, *, pid, machine, age=0.0):
    """A claim on the track "a"."""
    folder.mkdir(exist_ok=True)
    path = folder / "a"
    path.write_text(json.dumps({"host": machine, "pid": pid, "token": "theirs"}))
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def ended() -> int:
    """The id of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_track_is_one_processes_until_it_is_given_back(folder):
    with Claims(folder) as one, Claims(folder) as two:
        assert one.take("a")
        assert not two.take("a")
        assert two.is_taken("a")
        assert two.take("b")
        one.release("a")
        assert not two.is_taken("a")
        assert two.take("a")
    assert not folder.exists()


def test_of_many_that_ask_at_once_one_gets_it(folder):
    path = left_by(folder, pid=ended(), machine=host())  # and each takes it for dead
    claims = [Claims(folder) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(lambda each: each.take("a"), claims))
    assert sum(got) == 1
    assert json.loads(path.read_text())["token"] == claims[got.index(True)].token
    assert [each.name for each in folder.iterdir()] == ["a"]


def test_who_was_slow_to_judge_leaves_a_new_claim_alone(folder):
    left_by(folder, pid=ended(), machine=host())
    first, third = Claims(folder), Claims(folder)
    got = []

    class Slow(Claims):
        """While it judges a claim, the others ask: before it removes it, and while it does."""

        asking = iter([first, third])

        def _is_alive(self, path):
            alive = super()._is_alive(path)
            got.extend(each.take("a") for each in [next(self.asking, None)] if each)
            return alive

    slow = Slow(folder)
    assert not slow.take("a")
    assert got == [True, False]
    assert json.loads((folder / "a").read_text())["token"] == first.token


def test_claims_of_the_dead_are_taken_over_without_locks(folder, monkeypatch):
    def lacks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(claims_module, "fcntl", SimpleNamespace(flock=lacks, LOCK_EX=2, LOCK_NB=4))
    left_by(folder, pid=ended(), machine=host())
    assert Claims(folder).take("a")
    left_by(folder, pid=ended(), machine=host())
    monkeypatch.setattr(claims_module, "fcntl", None)
    assert Claims(folder).take("a")


@pytest.mark.parametrize(
    ("owner", "age", "free"),
    [
        ("died here", 0, True),
        ("lives here", 30, False),
        ("lives here", 90, True),  # hangs, or is another process of that id
        ("elsewhere", 30, False),
        ("elsewhere", 90, True),
    ],
)
def test_claims_of_the_dead_are_taken_over(folder, owner, age, free):
    pid = {"died here": ended, "lives here": os.getpid, "elsewhere": lambda: 1}[owner]()
    left_by(folder, pid=pid, machine="elsewhere" if owner == "elsewhere" else host(), age=age)
    with Claims(folder) as claims:
        assert claims.is_taken("a") is not free
        assert claims.take("a") is free


def test_a_torn_claim_counts_by_its_age(folder):
    path = left_by(folder, pid=1, machine="elsewhere")
    path.write_text("{")
    with Claims(folder) as claims:
        assert not claims.take("a")
        os.utime(path, (0, 0))
        assert claims.take("a")


def test_claims_are_kept_fresh(folder):
    with Claims(folder, beat=0.02) as claims:
        claims.take("a")
        path = folder / "a"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.time() - path.stat().st_mtime < 60


def test_half_a_claim_is_never_there(tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with Claims(tmp_path / "claims") as claims:
        for name in ("dump", "dumps"):
            monkeypatch.setattr(json, name, killed)
        with pytest.raises(KeyboardInterrupt):
            claims.take("Ann")
        assert not (claims.folder / "Ann").exists()


def test_claims_need_no_hard_links(tmp_path, monkeypatch):
    def lacks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(type(tmp_path), "hardlink_to", lacks)
    with Claims(tmp_path / "claims") as first, Claims(tmp_path / "claims") as second:
        assert first.take("Ann")
        assert not second.take("Ann")
        first.release("Ann")
        assert second.take("Ann")
