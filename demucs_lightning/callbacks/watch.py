"""Notices that another process of the run is gone, which torch does after its timeout, or never.

Every process holds a connection to the first one. The operating system closes it when a process
ends, however that happens; and a machine that has lost its network or its power stops answering.
"""

import os
import secrets
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lightning import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import distributed

from demucs_lightning.scale.strategies import WRITING

GRACE = 20.0  # seconds in which torch may find out, too, before this process ends anyway
HINDSIGHT = 5.0  # seconds in which the reason for an error of torch may turn up
SILENCE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}  # half a minute in all
BYE, FAILED, LOST = b"b", b"f", b"l"  # a letter and the number of a process
MESSAGE = struct.Struct("!cI")
GREETING = struct.Struct("!16sI")


class ProcessLost(ConnectionError):
    """Another process of this run has ended before its time."""


@dataclass(frozen=True)
class Lost:
    """Which process is gone; ``failed``: it said so itself, else it was killed."""

    rank: int
    failed: bool


class Watch(Callback):
    """Of several processes: once one is gone, ``lost`` says which, and a process that goes on
    waiting for it in vain is ended, with a sentence.
    """

    def __init__(self) -> None:
        self.lost: Lost | None = None
        self.noticed, self.leaving = threading.Event(), threading.Event()
        self.rank, self.world = 0, 1
        self.advice = ""
        self.peers: dict[int, socket.socket] = {}
        self.ended: set[int] = set()
        self.listening: socket.socket | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.rank, self.world = trainer.global_rank, trainer.world_size
        self.advice = f"resume_checkpoint={trainer.checkpoint_callback.last}"
        if self.world == 1:
            return
        self.peers, self.ended = {}, set()
        if self.rank == 0:
            self.listening = socket.create_server(("", 0), backlog=self.world)
            offer = (self.listening.getsockname()[1], secrets.token_bytes(16))
            port, token = trainer.strategy.broadcast(offer)
            self._welcome(token)
        else:
            port, token = trainer.strategy.broadcast(None)
            address = (os.environ.get("MASTER_ADDR", "127.0.0.1"), port)
            connection = socket.create_connection(address, timeout=60)
            connection.sendall(GREETING.pack(token, self.rank))
            self._attend(0, connection)

    def _welcome(self, token: bytes) -> None:
        """Take a connection of each other process."""
        assert self.listening is not None
        self.listening.settimeout(120)
        while len(self.peers) < self.world - 1:
            connection, _ = self.listening.accept()
            connection.settimeout(10)
            greeting = _received(connection, GREETING.size)
            said, rank = GREETING.unpack(greeting) if greeting else (b"", 0)
            if secrets.compare_digest(said, token):
                self._attend(rank, connection)
            else:
                connection.close()

    def _attend(self, rank: int, connection: socket.socket) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in SILENCE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self.peers[rank] = connection
        target = threading.Thread(target=self._listen, args=(rank, connection), daemon=True)
        target.start()

    def _listen(self, rank: int, connection: socket.socket) -> None:
        message = _received(connection, MESSAGE.size)
        kind, number = MESSAGE.unpack(message) if message else (LOST, rank)
        if kind == BYE or rank in self.ended or self.lost is not None:
            self.ended.add(rank)
            return
        self.lost = Lost(number, failed=kind == FAILED)
        self.noticed.set()
        if self.rank == 0:
            self._tell(kind, number)
        self._let_it_end()
        if self.tells:
            sys.stderr.write(f"error: {self.sentence()}\n")
            sys.stderr.flush()
        os._exit(1)

    def _let_it_end(self) -> None:
        """Give this process, of which this is a thread, the time to end by itself, and return where
        it doesn't: where torch never finds out, or writing the last checkpoint takes forever.
        """
        if self.leaving.wait(GRACE):
            time.sleep(WRITING)

    def _tell(self, kind: bytes, number: int) -> None:
        for connection in list(self.peers.values()):
            with suppress(OSError):
                connection.sendall(MESSAGE.pack(kind, number))

    @property
    def tells(self) -> bool:
        """Whether it is for this process to say who is gone: the first that is left."""
        return self.lost is not None and self.rank == (1 if self.lost.rank == 0 else 0)

    def sentence(self) -> str:
        """Who is gone, and how to continue."""
        assert self.lost is not None
        how = "has failed, as it says" if self.lost.failed else "has died"
        return f"Process {self.lost.rank} of {self.world} {how}. To continue: {self.advice}"

    def check(self) -> None:
        """End this process if another one is gone: with ProcessLost where it is to say so."""
        if self.lost is not None:
            raise ProcessLost(self.sentence()) if self.tells else SystemExit(1)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._close(BYE)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.leaving.set()
        if self.world == 1:
            return
        if type(exception) is RuntimeError or isinstance(exception, distributed.DistError):
            self.noticed.wait(HINDSIGHT)  # torch could not reach a process: because it is gone?
        if self.lost is None:
            self._close(BYE if isinstance(exception, SIGTERMException) else FAILED)

    def _close(self, kind: bytes) -> None:
        self.ended |= set(self.peers)
        self._tell(kind, self.rank)
        for connection in self.peers.values():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        if self.listening is not None:
            self.listening.close()
            self.listening = None


def _received(connection: socket.socket, size: int) -> bytes:
    """So many bytes, or none where the connection ends before."""
    content = b""
    while len(content) < size:
        try:
            part = connection.recv(size - len(content))
        except OSError:
            return b""
        if not part:
            return b""
        content += part
    return content
