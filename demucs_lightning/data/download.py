"""Bring a data set here: `fetch` downloads one file, `unpack` (see `archive`) puts a zip in place.

Contract: a file stands under its final name only once its size and md5 are right. Whatever goes
wrong ends in one sentence: `OSError` for the server, the connection and the disk, `ValueError` for
content. A broken transfer keeps its bytes in ``NAME.part`` and goes on from there, at once and in a
later run. Two processes that want the same file take turns. Nothing is asked.
"""

import contextlib
import hashlib
import http.client
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from tqdm import tqdm

from demucs_lightning.data import disk
from demucs_lightning.data.archive import unpack

__all__ = ["fetch", "unpack"]

log = logging.getLogger(__name__)

BACKOFF = 1.0  # seconds before the second attempt; doubled for each one after it
RETRIED = {408, 425, 429, 500, 502, 503, 504}


class _Interrupted(Exception):
    """A transfer that stopped for a reason that may pass."""


class _Unresumable(_Interrupted):
    """The server can't go on from the bytes that are here."""


def fetch(
    url: str, path: str | Path, *, size: int, md5: str, attempts: int = 5, timeout: float = 30.0
) -> Path:
    """Download `url` to `path` (`size` bytes, hexadecimal `md5`) and return the path.

    A file that is there already is checked, not fetched again. `attempts` counts those in a row
    that brought nothing new; `timeout` (seconds) holds for each wait on the server.
    Raises `OSError` (server, connection, disk) or `ValueError` (not the file that was expected).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with disk.locked(path.parent):
        if path.exists():
            _verify(path, size, md5, advice="delete it to fetch it again")
            return path
        if disk.size_of(part) > size:
            part.unlink()
        disk.check_space(path.parent, size - disk.size_of(part), purpose=f"fetch {path.name}")
        log.info("fetching %s (%s) to %s", url, disk.amount(size), path)
        with disk.progress(size, f"fetching {path.name}", done=disk.size_of(part)) as bar:
            _Transfer(url, part, size, timeout, bar).complete(attempts)
        try:
            _verify(part, size, md5, advice="it was deleted; run it again to fetch it anew")
        except ValueError:
            part.unlink()
            raise
        part.replace(path)
    return path


@dataclass
class _Transfer:
    """From `url` into the file `part` until that has `size` bytes."""

    url: str
    part: Path
    size: int
    timeout: float
    bar: tqdm

    def complete(self, attempts: int) -> None:
        """Connect as often as it takes, but no more than `attempts` times in a row for nothing."""
        failures = 0
        while (have := disk.size_of(self.part)) < self.size:
            try:
                self._connect(have)
            except _Interrupted as reason:
                if isinstance(reason, _Unresumable):
                    self.part.unlink(missing_ok=True)
                now = disk.size_of(self.part)
                failures = 0 if now > have else failures + 1
                if failures >= attempts:
                    raise OSError(
                        f"fetching {self.url} stopped after {now} of {self.size} bytes "
                        f"({reason}): run it again to go on from there"
                    ) from reason
                log.warning("fetching %s: %s; trying again", self.url, reason)
                time.sleep(BACKOFF * 2 ** max(failures - 1, 0))

    def _connect(self, have: int) -> None:
        """Ask for what is missing after the `have` bytes in `part`, and write what comes."""
        with self._answer(have) as response:
            have = _start(response, have)
            if response.length not in (None, self.size - have):
                raise ValueError(
                    f"{self.url} offers {have + response.length} bytes instead of {self.size}"
                )
            with self.part.open("ab" if have else "wb", buffering=0) as file:
                self.bar.update(have - self.bar.n)
                while chunk := _received(response):
                    if have + len(chunk) > self.size:
                        raise ValueError(
                            f"{self.url} sends more than the expected {self.size} bytes"
                        )
                    disk.write(file, chunk, missing=self.size - have)
                    have += len(chunk)
                    self.bar.update(len(chunk))
        if have < self.size:
            raise _Interrupted("the server closed the connection too early")

    @contextlib.contextmanager
    def _answer(self, have: int) -> Iterator[http.client.HTTPResponse]:
        """The response to a request for the bytes from `have` on, unless it is a web page."""
        request = urllib.request.Request(self.url, headers={"User-Agent": "demucs-lightning"})
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
            raise OSError(f"{self.url} can't be fetched: {answer}") from error
        except urllib.error.URLError as error:
            raise _Interrupted(f"no connection, {error.reason}") from error
        except (http.client.HTTPException, OSError) as error:
            raise _Interrupted(f"no usable answer, {error or type(error).__name__}") from error
        with response:
            if response.headers.get_content_type() == "text/html":
                raise OSError(f"{self.url} answered with a web page instead of the file")
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


def _verify(path: Path, size: int, md5: str, *, advice: str) -> None:
    found = disk.size_of(path)
    if found != size:
        raise ValueError(f"{path} has {found} bytes instead of {size}: {advice}")
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file, disk.progress(size, f"checking {path.name}") as bar:
        while chunk := file.read(disk.CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    if digest.hexdigest() != md5.lower():
        raise ValueError(f"{path} has md5 {digest.hexdigest()} instead of {md5}: {advice}")
