"""Threads that decode ahead of a separation, and convert and encode behind it, while the model
computes. Each holds a few blocks at most, and what fails in one is raised to its caller.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(items: Iterable[Item], depth: int = 2) -> Generator[Item, None, None]:
    """The items, which are not None, made in a thread up to ``depth`` ahead of their use."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as thread:
        pending = deque(thread.submit(next, iterator, None) for _ in range(depth))
        try:
            while (item := pending.popleft().result()) is not None:
                pending.append(thread.submit(next, iterator, None))
                yield item
        finally:
            for future in pending:
                future.cancel()


def following(
    items: Iterable[Item], call: Callable[[Item], Result], depth: int = 2
) -> Generator[Result, None, None]:
    """``call`` of each item, in order, run in a thread while the next ``depth`` items are made."""
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(1) as thread:
        try:
            for item in items:
                pending.append(thread.submit(call, item))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class Behind:
    """A context manager that runs calls at once, in ``width`` threads, one group after the other.

    What a call raises is raised by the next group, or at the end.
    """

    def __init__(self, width: int) -> None:
        self._threads = ThreadPoolExecutor(width)
        self._pending: list[Future[Any]] = []

    def __enter__(self) -> Self:
        return self

    def run(self, calls: Sequence[Callable[[], object]]) -> None:
        """Start the calls when those before are through."""
        self.finish()
        self._pending = [self._threads.submit(call) for call in calls]

    def finish(self) -> None:
        pending, self._pending = self._pending, []
        wait(pending)
        for future in pending:
            future.result()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown()
        if kind is None:
            self.finish()
