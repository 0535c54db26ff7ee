"""A side of a benchmark in a process of its own.

It finds memory there as its own program would. In one process with the other side it would inherit
the heap that this has left behind, and be faster than its users have it.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, Self


class Aside:
    """What ``make(*args)`` gives, in another process, as long as this is open; what it raises is
    raised here.
    """

    def __init__(self, make: Callable[..., Any], *args: Any) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self._make = make, args

    def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """``function(it, *args)``, there."""
        return self._run(_apply, function, args)

    def _run(self, *call: Any) -> Any:
        try:
            return self._pool.submit(*call).result()
        except BrokenProcessPool as error:
            raise OSError(
                "The process of a side was killed: has this machine the memory?"
            ) from error

    def __enter__(self) -> Self:
        try:
            self._run(_keep, *self._make)
        except BaseException:
            self._pool.shutdown()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()


_kept: list[Any] = []


def _keep(make: Callable[..., Any], args: tuple[Any, ...]) -> None:
    _kept[:] = [make(*args)]


def _apply(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return function(_kept[0], *args)
