"""Signals that end a run as Ctrl-C does, so that files that are being written go."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Of a job that is stopped, and of a terminal that was closed, which Windows has not.
ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP are what Ctrl-C is, but for one that is ignored, as nohup has it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
