"""Bring a file here: `fetch` downloads one of a data set, `bring` any of which a checksum is known,
and `unpack` (see `archive`) puts a zip in place.

Contract: a file stands under its final name only once its checksum is right, and its size where
that is known. Whatever goes wrong ends in one sentence: `OSError` for the server, the connection
and the disk, `ValueError` for content. A broken transfer keeps its bytes in ``NAME.part`` and goes
on from there, at once and in a later run. Two processes that want the same file take turns.
Nothing is asked.
"""

import contextlib
import hashlib
import http.client
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from tqdm import tqdm

from demucs_lightning.data import disk
from demucs_lightning.data.archive import unpack

__all__ = ["Checksum", "NoAnswer", "NoConnection", "Source", "bring", "fetch", "unpack"]

log = logging.getLogger(__name__)

BACKOFF = 1.0  # seconds before the second attempt; doubled for each one after it
RETRIED = {408, 425, 429, 500, 502, 503, 504}


class NoAnswer(OSError):
    """Not a byte came: there is no connection, or the server does not have the file."""


class NoConnection(NoAnswer):
    """The server can't be reached, so that asking it for another file is in vain."""


@dataclass(frozen=True)
class Checksum:
    """What the content of a file gives: ``digest`` is the start, in hexadecimal, of its ``kind``,
    which is md5, sha256, or git (the name that git has for the content).
    """

    kind: str
    digest: str

    def of(self, path: Path, *, hidden: bool = False) -> str:
        """What the file has where it should have `digest`; `hidden`: without a bar."""
        size = disk.size_of(path)
        name = "sha1" if self.kind == "git" else self.kind
        digest = hashlib.new(name, usedforsecurity=False)
        if self.kind == "git":
            digest.update(f"blob {size}\0".encode())
        bar = disk.progress(size, f"checking {path.name}", hidden=hidden)
        with path.open("rb") as file, bar:
            while chunk := file.read(disk.CHUNK):
                digest.update(chunk)
                bar.update(len(chunk))
        return digest.hexdigest()[: len(self.digest)]

    def fits(self, path: Path, *, hidden: bool = False) -> bool:
        """Whether the file is the one that is meant; `hidden`: without a bar."""
        return self.of(path, hidden=hidden) == self.digest.lower()


@dataclass(frozen=True)
class Source:
    """Where a file comes from; ``size`` in bytes, None where the server is to say it; ``name`` is
    what to call it in messages, where that is not the address.
    """

    url: str
    checksum: Checksum
    size: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    name: str = ""

    @property
    def title(self) -> str:
        return self.name or self.url


class _Interrupted(Exception):
    """A transfer that stopped for a reason that may pass."""


class _Unreachable(_Interrupted):
    """There is no connection to the server."""


class _Unresumable(_Interrupted):
    """The server can't go on from the bytes that are here."""


def fetch(
    url: str, path: str | Path, *, size: int, md5: str, attempts: int = 5, timeout: float = 30.0
) -> Path:
    """Download `url` to `path` (`size` bytes, hexadecimal `md5`) and return the path; see bring."""
    source = Source(url, Checksum("md5", md5), size)
    return bring(source, path, attempts=attempts, timeout=timeout)


def bring(
    source: Source,
    path: str | Path,
    *,
    attempts: int = 5,
    timeout: float = 30.0,
    progress: bool | None = None,
) -> Path:
    """Download `source` to `path` and return the path.

    A file that is there already is checked, not fetched again. `attempts` counts those in a row
    that brought nothing new; `timeout` (seconds) holds for each wait on the server. `progress`
    False hides the bar that a terminal is shown.
    Raises `OSError` (server, connection, disk; `NoAnswer` if not a byte came) or `ValueError` (not
    the file that was expected).
    """
    path, hidden = Path(path), progress is False
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with disk.locked(path.parent):
        if path.exists():
            _verify(path, source, hidden, advice=f"delete {path} to fetch it again")
            return path
        if source.size is not None:
            if disk.size_of(part) > source.size:
                part.unlink()
            missing = source.size - disk.size_of(part)
            disk.check_space(path.parent, missing, purpose=f"fetch {source.name or path.name}")
        size = "" if source.size is None else f" ({disk.amount(source.size)})"
        log.info("fetching %s%s to %s", source.title, size, path)
        done, title = disk.size_of(part), f"fetching {source.name or path.name}"
        with disk.progress(source.size, title, done=done, hidden=hidden) as bar:
            _Transfer(source, part, source.size, timeout, bar).complete(attempts)
        try:
            _verify(part, source, hidden, advice="it was deleted; run it again to fetch it anew")
        except ValueError:
            part.unlink()
            raise
        part.replace(path)
    return path


@dataclass
class _Transfer:
    """From `source` into the file `part` until that has `size` bytes, or to the end if the server
    does not say how many they are.
    """

    source: Source
    part: Path
    size: int | None
    timeout: float
    bar: tqdm

    def complete(self, attempts: int) -> None:
        """Connect as often as it takes, but no more than `attempts` times in a row for nothing."""
        failures = 0
        while (have := disk.size_of(self.part)) < (have + 1 if self.size is None else self.size):
            try:
                self._connect(have)
            except _Interrupted as reason:
                if isinstance(reason, _Unresumable):
                    self.part.unlink(missing_ok=True)
                now = disk.size_of(self.part)
                failures = 0 if now > have else failures + 1
                if failures >= attempts:
                    raise self._stopped(now, reason) from reason
                log.warning("fetching %s: %s; trying again", self.source.title, reason)
                time.sleep(BACKOFF * 2 ** max(failures - 1, 0))

    def _stopped(self, have: int, reason: _Interrupted) -> OSError:
        if not have:
            kind = NoConnection if isinstance(reason, _Unreachable) else NoAnswer
            return kind(f"{self.source.title} can't be fetched: {reason}.")
        of = "" if self.size is None else f" of {self.size}"
        return OSError(
            f"fetching {self.source.title} stopped after {have}{of} bytes ({reason}): run it again "
            "to go on from there."
        )

    def _connect(self, have: int) -> None:
        """Ask for what is missing after the `have` bytes in `part`, and write what comes."""
        with self._answer(have) as response:
            have = _start(response, have)
            self._expect(have, response.length)
            with self.part.open("ab" if have else "wb", buffering=0) as file:
                self.bar.update(have - self.bar.n)
                while chunk := _received(response):
                    missing = len(chunk) if self.size is None else self.size - have
                    if len(chunk) > missing:
                        raise ValueError(
                            f"{self.source.title} is more than the expected {self.size} bytes."
                        )
                    disk.write(file, chunk, missing=missing, name=self.source.name)
                    have += len(chunk)
                    self.bar.update(len(chunk))
        if self.size is None:
            self.size = have  # the end is where the server closes; the checksum tells if too early
        if have < self.size:
            raise _Interrupted("the server closed the connection too early")

    def _expect(self, have: int, length: int | None) -> None:
        """Compare `length`, the bytes to come after `have`, with the size, or learn the size."""
        if length is None:
            return
        if self.size is None:
            self.size = self.bar.total = have + length
            disk.check_space(
                self.part.parent, length, purpose=f"fetch {self.source.name or self.part.stem}"
            )
        elif have + length != self.size:
            raise ValueError(
                f"{self.source.title} has {have + length} bytes instead of {self.size}."
            )

    @contextlib.contextmanager
    def _answer(self, have: int) -> Iterator[http.client.HTTPResponse]:
        """The response to a request for the bytes from `have` on, unless it is a web page."""
        headers = {"User-Agent": "demucs-lightning", **self.source.headers}
        request = urllib.request.Request(self.source.url, headers=headers)
        if have:
            request.add_header("Range", f"bytes={have}-")
        try:
            response = urllib.request.urlopen(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            error.close()
            answer = f"{error.code} {error.reason}"
            if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise _Unresumable(f"the server answered {answer}") from error
            if error.code in RETRIED:
                raise _Interrupted(f"the server answered {answer}") from error
            raise NoAnswer(f"{self.source.title} can't be fetched: {answer}.") from error
        except urllib.error.URLError as error:
            why = getattr(error.reason, "strerror", None) or error.reason
            raise _Unreachable(f"no connection, {why}") from error
        except (http.client.HTTPException, OSError) as error:
            raise _Interrupted(f"no usable answer, {error or type(error).__name__}") from error
        with response:
            if response.headers.get_content_type() == "text/html":
                raise OSError(f"{self.source.title} comes as a web page instead of the file.")
            yield response


def _start(response: http.client.HTTPResponse, have: int) -> int:
    """The position of the first byte that comes: `have` where the server resumes, otherwise 0."""
    if response.status == HTTPStatus.OK:
        return 0
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if response.status != HTTPStatus.PARTIAL_CONTENT or not found or int(found[1]) != have:
        raise _Unresumable("the server sends other bytes than it was asked for")
    return have


def _received(response: http.client.HTTPResponse) -> bytes:
    """The next bytes, as soon as there are some; empty at the end."""
    try:
        return response.read1(disk.CHUNK)
    except (http.client.HTTPException, OSError) as error:
        raise _Interrupted(f"the connection broke, {error or type(error).__name__}") from error


def _verify(path: Path, source: Source, hidden: bool, *, advice: str) -> None:
    size, what = disk.size_of(path), source.name or path
    if source.size not in (None, size):
        raise ValueError(f"{what} has {size} bytes instead of {source.size}: {advice}.")
    checksum = source.checksum
    found = checksum.of(path, hidden=hidden)
    if found != checksum.digest.lower():
        raise ValueError(
            f"{what} has {checksum.kind} {found[:8]} instead of {checksum.digest[:8]}: {advice}."
        )
