"""What an evaluation says: where it runs, a bar and a line for each track, and the table."""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tqdm import tqdm

from demucs_lightning.data.tracks import Track
from demucs_lightning.evaluation.results import Results, TrackResult, write_text
from demucs_lightning.evaluation.run import Evaluation, Outcome, Watch
from demucs_lightning.evaluation.table import as_json, line, table

log = logging.getLogger(__name__)

REPORT = "report.html"
FORM = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}<{remaining}{postfix}"


class Scoreboard(Watch):
    """A context manager that shows how ``tracks`` of an evaluation are getting on.

    ``place`` says what computes; with ``quiet``, stdout is left to others.
    """

    def __init__(
        self, evaluation: Evaluation, tracks: Sequence[Track], *, place: str, quiet: bool = False
    ) -> None:
        self.evaluation, self.place, self.quiet = evaluation, place, quiet
        self.tracks = list(tracks)
        self._lock = threading.Lock()
        self._parts: dict[str, float] = {}  # seconds of audio by track

    def __enter__(self) -> Self:
        evaluation, left = self.evaluation, self.evaluation.left(self.tracks)
        data, count = evaluation.data, len(self.tracks)
        there = f", {count - len(left)} scored already" if len(left) < count else ""
        if _rank() == 0:
            self.say(
                f"{evaluation.workers[0].name} on {self.place} · {data.name} {data.subset}: "
                f"{count} track{'s' * (count != 1)}{there} · results go to {evaluation.folder}"
            )
        self._count, self._left = count, {track.name for track in left}
        self._started = time.monotonic()
        total = sum(track.duration for track in left)
        # One bar on a terminal that several processes share.
        hidden = True if _rank() or not left else None
        self._bar = tqdm(total=total, leave=False, disable=hidden, bar_format=FORM)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def say(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr if self.quiet else sys.stdout)

    def progress(self, track: Track, part: float) -> None:
        # Separated is not scored: the rest counts when that is done.
        self._show(track, 0.9 * part)

    def done(self, track: Track, result: TrackResult) -> None:
        self._over(track)
        self.say(f"{self._number()} {line(result, self.evaluation.sources)}")

    def elsewhere(self, track: Track) -> None:
        self._over(track)

    def failed(self, track: Track, reason: str) -> None:
        self._over(track)
        tqdm.write(f"error: {reason}", file=sys.stderr)

    def _number(self) -> str:
        return f"{self._count - len(self._left)}/{self._count}"

    def _over(self, track: Track) -> None:
        self._show(track, 1.0)
        self._left.discard(track.name)

    def _show(self, track: Track, part: float) -> None:
        with self._lock:
            self._parts[track.name] = part * track.duration
            seconds = sum(self._parts.values())
            speed = seconds / max(time.monotonic() - self._started, 1e-9)
            self._bar.set_description_str(f"{self._number()} {track.name}"[:40], refresh=False)
            self._bar.set_postfix_str(f"{speed:.1f} x real time", refresh=False)
            self._bar.update(min(seconds, self._bar.total or 0) - self._bar.n)


def _rank() -> int:
    """Of this process among those that torchrun, Slurm or Lightning started."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return int(next((os.environ[name] for name in names if os.environ.get(name)), 0))


def conclude(
    outcome: Outcome, *, report: bool, json_file: str | None = None, partial: bool = False
) -> None:
    """Print the table and write the rest, unless others are still at work, or this was ``partial``
    and there are tracks left."""
    results, count = outcome.results, len(outcome.results.tracks)
    quiet = json_file == "-"
    for reason in outcome.faults.values():
        print(f"failed: {reason}", file=sys.stderr)
    if not outcome.complete and (outcome.busy or partial):
        others = f", {outcome.busy} being scored by other processes" if outcome.busy else ""
        text = f"{count} of {outcome.of} tracks are scored{others}: the last one prints the table."
        print(text, file=sys.stderr if quiet else sys.stdout)
        return
    if not count:
        print("error: no track could be scored.", file=sys.stderr)
        return
    text = table(results)
    print(f"\n{text}", file=sys.stderr if quiet else sys.stdout)
    if json_file:
        content = {**as_json(results), "failed": outcome.faults, "table": text}
        written = json.dumps(content, indent=1)
        if quiet:
            print(written)
        else:
            write_text(Path(json_file), written + "\n")
    if report:
        write_report(results, quiet=quiet)


def write_report(results: Results, *, quiet: bool = False) -> None:
    """The report, in the folder of the results; without one they are of use as well."""
    path = results.folder / REPORT
    try:
        from demucs_lightning.evaluation import report

        report.write_report(results, path)
    except (ImportError, OSError, ValueError, TypeError, LookupError, RuntimeError) as error:
        log.warning("%s could not be written (%s): the results are complete.", path, error)
    else:
        print(f"The report: {path}", file=sys.stderr if quiet else sys.stdout)
