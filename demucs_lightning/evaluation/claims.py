"""Several processes, on one machine or many, share out the tracks of one results folder.

Who works on a track holds a claim, a file that only one can create, and touches it every few
seconds. The claim of a process that died is taken over: at once on the same machine, and elsewhere
once it was not touched for a minute. Nobody waits for anybody. Should two ever score one track,
both write the same result, whole.
"""

import json
import os
import socket
import threading
import uuid
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

try:
    import fcntl
except ImportError:  # Windows: two processes may take over one claim
    fcntl = None

BEAT = 10.0  # seconds between two touches of a claim
STALE = 60.0  # seconds without one after which its owner is taken for dead


class Claims:
    """A context manager that holds claims in ``folder``, and keeps them fresh."""

    def __init__(self, folder: Path, *, beat: float = BEAT, stale: float = STALE) -> None:
        self.folder, self.beat, self.stale = folder, beat, stale
        self.token = uuid.uuid4().hex
        self._held: set[Path] = set()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beats, daemon=True)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        for path in list(self._held):
            self.release(path.name)
        with suppress(OSError):  # others may still have claims in it
            self.folder.rmdir()

    def take(self, name: str) -> bool:
        """Claim the track of that id; False if another process works on it."""
        path = self.folder / name
        for _ in range(2):
            try:
                self._create(path)
            except FileExistsError:
                if self._is_alive(path) or not self._remove(path):
                    return False
                continue
            with self._lock:
                self._held.add(path)
            return True
        return False

    def release(self, name: str) -> None:
        with self._lock:
            self._held.discard(self.folder / name)
        (self.folder / name).unlink(missing_ok=True)

    def is_taken(self, name: str) -> bool:
        """Whether a process that lives works on the track."""
        path = self.folder / name
        return path.exists() and self._is_alive(path)

    def _create(self, path: Path) -> None:
        """Whole at once: half a claim, of a process killed meanwhile, would count for a minute."""
        self.folder.mkdir(parents=True, exist_ok=True)  # the last to leave has removed it
        draft = self.folder / f".{uuid.uuid4().hex}"
        owner = {"host": host(), "pid": os.getpid(), "token": self.token}
        draft.write_text(json.dumps(owner), encoding="utf-8")
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            raise
        except OSError:  # a disk without hard links
            with path.open("x", encoding="utf-8") as file:
                file.write(json.dumps(owner))
        finally:
            draft.unlink(missing_ok=True)

    def _beats(self) -> None:
        while not self._over.wait(self.beat):
            with self._lock:
                for path in self._held:
                    with suppress(FileNotFoundError):
                        os.utime(path)

    def _is_alive(self, path: Path) -> bool:
        try:
            touched = path.stat().st_mtime
            owner = json.loads(path.read_text(encoding="utf-8"))
            here, pid = owner["host"] == host(), int(owner["pid"])
        except FileNotFoundError:
            return False
        except (ValueError, KeyError, TypeError):  # being written, where there are no hard links
            here, pid = False, 0
        if here and not _runs(pid):
            return False
        return self._now() - touched < self.stale

    def _now(self) -> float:
        """The time by the clock of the disk, which may be another machine's."""
        probe = self.folder / f".{uuid.uuid4().hex}"
        try:
            probe.touch()
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _remove(self, path: Path) -> bool:
        """Remove a dead process' claim; False if another process does, or has claimed the track."""
        if fcntl is None:
            return self._put_aside(path)
        with ExitStack() as opened:
            try:
                file = opened.enter_context(path.open("r+b"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                same = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except FileNotFoundError:
                return True  # given back meanwhile
            except BlockingIOError:
                return False
            except OSError:  # a disk without locks
                return self._put_aside(path)
            if not same or self._is_alive(path):
                return False
            path.unlink(missing_ok=True)
            return True

    def _put_aside(self, path: Path) -> bool:
        """The same without a lock: in a moment between, a third process may claim the track too."""
        aside = self.folder / f".{uuid.uuid4().hex}"
        try:
            path.rename(aside)
        except FileNotFoundError:
            return True
        alive = self._is_alive(aside)
        if alive:  # another process has put the dead one's aside, and this was its own
            with suppress(FileExistsError):
                aside.rename(path) if os.name == "nt" else path.hardlink_to(aside)
        aside.unlink(missing_ok=True)
        return not alive


def host() -> str:
    """What tells machines apart, and containers on them: process ids are of one of these."""
    name = socket.gethostname()
    with suppress(OSError):
        name += f" {os.readlink('/proc/self/ns/pid')}"
    return name


def _runs(pid: int) -> bool:
    """Whether there is such a process on this machine; True where that can't be known."""
    if os.name == "nt":  # there, os.kill ends a process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
