"""`fetch` against a server on the loopback address that misbehaves in every way known to us."""

import errno
import hashlib
import logging
import shutil
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from demucs_lightning.data import disk, download
from demucs_lightning.data.download import Checksum, NoAnswer, Source, bring, fetch

BODY = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(BODY).hexdigest()
EXPECTED = {"size": len(BODY), "md5": MD5}


class Server(ThreadingHTTPServer):
    settings: SimpleNamespace


class Handler(BaseHTTPRequestHandler):
    """Serves `server.body`; each of `server.breaks` ends one connection after that many bytes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        server = self.server.settings
        server.requests.append(self.headers.get("Range"))
        if server.errors:
            self.send_error(server.errors.pop(0))
            return
        start = 0
        if server.ranges and "Range" in self.headers:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        rest = server.body[start + server.wrong_by if start else 0 :]
        self.send_response(206 if start else 200)
        if start:
            first = start + server.wrong_by
            self.send_header("Content-Range", f"bytes {first}-{len(server.body) - 1}/*")
        self.send_header("Content-Type", server.kind)
        if server.says_length:
            self.send_header("Content-Length", str(len(rest)))
        self.send_header("Connection", "close")
        self.end_headers()
        if server.breaks:
            rest = rest[: server.breaks.pop(0)]
        self.wfile.write(rest)
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    """The settings of a running server, which the test may turn, and its address in `url`."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "BACKOFF", 0.001)
    http = Server(("127.0.0.1", 0), Handler)
    http.settings = SimpleNamespace(
        url=f"http://127.0.0.1:{http.server_port}/set.zip",
        body=BODY,
        kind="application/zip",
        ranges=True,
        wrong_by=0,
        says_length=True,
        breaks=[],
        errors=[],
        requests=[],
    )
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield http.settings
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "set.zip"


def part_of(path):
    return path.with_name(path.name + ".part")


def test_fetch_brings_the_file_and_leaves_nothing_else(server, path):
    assert fetch(server.url, path, **EXPECTED) == path
    assert path.read_bytes() == BODY
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_is_there_is_checked_and_not_fetched_again(server, path):
    fetch(server.url, path, size=len(BODY), md5=MD5.upper())
    fetch(server.url, path, **EXPECTED)
    assert server.requests == [None]


@pytest.mark.parametrize("content", [BODY[:-1], b"x" * len(BODY)])
def test_another_file_of_that_name_is_refused_and_kept(server, path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"set\.zip has .* instead of .*: delete .*set\.zip to"):
        fetch(server.url, path, **EXPECTED)
    assert path.read_bytes() == content
    assert server.requests == []


def test_broken_connections_are_resumed_at_once(server, path):
    server.breaks = [100_000, 50_000]
    fetch(server.url, path, **EXPECTED)
    assert path.read_bytes() == BODY
    assert server.requests == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_run_goes_on_from_the_part(server, path):
    server.breaks = [123_456, 0]
    with pytest.raises(OSError, match="stopped after 123456 of 300000 bytes .*run it again"):
        fetch(server.url, path, **EXPECTED, attempts=1)
    assert not path.exists()
    assert part_of(path).read_bytes() == BODY[:123_456]
    fetch(server.url, path, **EXPECTED)
    assert path.read_bytes() == BODY
    assert server.requests == [None, "bytes=123456-", "bytes=123456-"]


def test_connections_that_bring_nothing_are_counted(server, path):
    server.breaks = [0] * 10
    with pytest.raises(OSError, match="too early"):
        fetch(server.url, path, **EXPECTED, attempts=3)
    assert len(server.requests) == 3


def test_a_server_without_ranges_starts_anew(server, path):
    server.ranges = False
    server.breaks = [200_000, 100_000]
    fetch(server.url, path, **EXPECTED)
    assert path.read_bytes() == BODY
    assert server.requests == [None, "bytes=200000-", "bytes=100000-"]


def test_a_range_that_was_not_asked_for_is_not_appended(server, path):
    server.breaks = [200_000]
    server.wrong_by = 7
    fetch(server.url, path, **EXPECTED)
    assert path.read_bytes() == BODY
    assert server.requests == [None, "bytes=200000-", None]


def test_a_part_that_the_server_refuses_to_resume_is_dropped(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(b"old" * 1000)
    server.errors = [416]
    fetch(server.url, path, **EXPECTED)
    assert path.read_bytes() == BODY
    assert server.requests == ["bytes=3000-", None]


def test_a_part_longer_than_the_file_is_dropped(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(BODY + b"x")
    fetch(server.url, path, **EXPECTED)
    assert server.requests == [None]


def test_a_whole_part_is_only_checked(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(BODY)
    fetch(server.url, path, **EXPECTED)
    assert path.read_bytes() == BODY
    assert server.requests == []


def test_a_length_unknown_beforehand_is_no_obstacle(server, path):
    server.says_length = False
    server.breaks = [10_000]
    fetch(server.url, path, **EXPECTED)
    assert path.read_bytes() == BODY


def test_errors_that_may_pass_are_retried(server, path):
    server.errors = [503, 429, 500]
    fetch(server.url, path, **EXPECTED)
    assert path.read_bytes() == BODY
    assert len(server.requests) == 4


def test_the_wrong_md5_names_both_and_leaves_nothing(server, path):
    with pytest.raises(
        ValueError, match=rf"set\.zip\.part has md5 {MD5[:8]} instead of 00000000: it"
    ):
        fetch(server.url, path, size=len(BODY), md5="0" * 32)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("says_length", [True, False])
def test_a_file_of_another_size_is_refused(server, path, says_length):
    server.says_length = says_length
    with pytest.raises(ValueError, match="299999"):
        fetch(server.url, path, size=299_999, md5=MD5)
    assert not path.exists()


def test_a_missing_file_is_said_at_once(server, path):
    server.errors = [404] * 9
    with pytest.raises(OSError, match=r"http.*set\.zip can't be fetched: 404 Not Found"):
        fetch(server.url, path, **EXPECTED)
    assert len(server.requests) == 1
    assert list(path.parent.iterdir()) == []


def test_a_web_page_is_not_taken_for_the_file(server, path):
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(OSError, match="web page"):
        fetch(server.url, path, **EXPECTED)
    assert list(path.parent.iterdir()) == []


def test_a_refused_connection_is_one_sentence(server, path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: nobody answers there
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/set.zip"
        with pytest.raises(OSError, match="no connection, .*refused"):
            fetch(url, path, **EXPECTED, attempts=2)


def test_a_server_that_falls_silent_is_left(server, path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/set.zip"
        with pytest.raises(OSError, match="timed out"):
            fetch(url, path, **EXPECTED, attempts=1, timeout=0.05)


def test_too_little_room_is_said_before_the_transfer(server, path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"new has 1\.0 kB free, but 300\.0 kB are needed to fetch"):
        fetch(server.url, path, **EXPECTED)
    assert server.requests == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_keeps_the_part(server, path, monkeypatch, code):
    room = 100_000

    class Full:
        """A file that takes `room` bytes and no more."""

        def __init__(self, file):
            self.file, self.name = file, file.name

        def write(self, view):
            left = room - self.file.tell()
            if left <= 0:
                raise OSError(code, "No space left on device")
            return self.file.write(view[:left])

    whole_write: Any = disk.write
    monkeypatch.setattr(
        disk, "write", lambda file, chunk, **kwargs: whole_write(Full(file), chunk, **kwargs)
    )
    with pytest.raises(OSError, match=r"the disk is full: .*set\.zip\.part needs another"):
        fetch(server.url, path, **EXPECTED)
    assert part_of(path).read_bytes() == BODY[:room]
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fetch(server.url, path, **EXPECTED)
    assert path.read_bytes() == BODY
    assert server.requests == [None, f"bytes={room}-"]


def test_an_error_of_the_disk_that_is_not_fullness_keeps_its_own_words(tmp_path):
    class Broken:
        def write(self, view):
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        disk.write(Broken(), b"x", missing=1)  # pyright: ignore[reportArgumentType]


def test_two_runs_of_one_file_take_turns(server, path, caplog):
    path.parent.mkdir()
    caplog.set_level(logging.WARNING)
    other = threading.Thread(target=fetch, args=(server.url, path), kwargs=EXPECTED)
    with disk.locked(path.parent):
        other.start()
        while "waiting for it" not in caplog.text:
            assert other.is_alive()
            other.join(0.01)
        assert server.requests == []
    other.join()
    assert path.read_bytes() == BODY


GIT = hashlib.sha1(b"blob 300000\0" + BODY).hexdigest()
SUMS = [Checksum("sha256", hashlib.sha256(BODY).hexdigest()[:8].upper()), Checksum("git", GIT)]


@pytest.mark.parametrize("checksum", SUMS, ids=lambda checksum: checksum.kind)
@pytest.mark.parametrize("says_length", [True, False])
def test_a_size_that_is_not_known_is_the_server_s(server, path, checksum, says_length):
    server.says_length = says_length
    server.breaks = [] if not says_length else [100_000, 50_000]
    assert bring(Source(server.url, checksum), path) == path
    assert path.read_bytes() == BODY
    assert server.requests == ([None, "bytes=100000-", "bytes=150000-"] if says_length else [None])
    bring(Source(server.url, checksum), path)


def test_an_end_that_comes_too_early_unannounced_is_found_by_the_checksum(server, path):
    server.says_length = False
    server.breaks = [100_000]
    with pytest.raises(ValueError, match=r"has sha256 \w{8} instead of \w{8}: it was deleted"):
        bring(Source(server.url, SUMS[0]), path)
    assert list(path.parent.iterdir()) == []


def test_too_little_room_is_said_once_the_size_is_known(server, path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"1\.0 kB free, but 300\.0 kB are needed to fetch set\.zip"):
        bring(Source(server.url, SUMS[0]), path)
    assert list(path.parent.iterdir()) == []


def test_where_nothing_came_another_source_may_be_asked(server, path):
    server.errors = [404]
    with pytest.raises(NoAnswer, match="404"):
        bring(Source(server.url, SUMS[0]), path)
    server.breaks = [0, 0]
    with pytest.raises(NoAnswer, match=r"set\.zip can't be fetched: the server closed"):
        bring(Source(server.url, SUMS[0]), path, attempts=2)
    server.breaks = [10, 0, 0]
    with pytest.raises(OSError, match="stopped after 10 of 300000 bytes") as error:
        bring(Source(server.url, SUMS[0]), path, attempts=2)
    assert not isinstance(error.value, NoAnswer)
