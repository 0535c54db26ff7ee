"""How far a track is: a bar on a terminal, and elsewhere a plain line from time to time."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

PAUSE = 30  # seconds between two lines; a track that takes less has none
Clock = Callable[[], float]


@contextmanager
def shown(
    name: str, seconds: float, *, clock: Clock = time.monotonic
) -> Iterator[Callable[[float], None]]:
    """What is to be called with the part that is done of a track of so many ``seconds``, 0 for
    unknown; ``clock`` gives seconds."""
    if sys.stderr.isatty():
        with _bar(name, seconds, clock) as progress:
            yield progress
    else:
        yield Lines(name, seconds, clock)


class Lines:
    """Says on stderr how much is done, how fast it goes and how long it still takes."""

    def __init__(self, name: str, seconds: float, clock: Clock) -> None:
        self._name, self._seconds, self._clock = name, seconds, clock
        self._start = self._last = clock()

    def __call__(self, part: float) -> None:
        now = self._clock()
        if now - self._last < PAUSE or not 0 < part < 1:
            return
        self._last, elapsed = now, now - self._start
        left = tqdm.format_interval(round(elapsed * (1 - part) / part))
        said = [f"{part:.0%}", _speed(part * self._seconds, elapsed), f"{left} left"]
        tqdm.write(f"{self._name}: {', '.join(filter(None, said))}", file=sys.stderr)


@contextmanager
def _bar(name: str, seconds: float, clock: Clock) -> Iterator[Callable[[float], None]]:
    start = clock()
    form = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=1.0, desc=name, leave=False, bar_format=form) as bar:

        def progress(part: float) -> None:
            bar.set_postfix_str(_speed(part * seconds, clock() - start), refresh=False)
            bar.update(part - bar.n)

        yield progress


def _speed(seconds: float, elapsed: float) -> str:
    return f"{seconds / max(elapsed, 1e-9):.1f} x real time" if seconds else ""
