"""Decoding ahead of a separation and encoding behind it, in threads, while the model computes."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Self, TypeVar

Item = TypeVar("Item")


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
