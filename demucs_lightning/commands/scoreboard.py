"""What an evaluation says: where it runs, a bar and a line for each track, and the table."""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from demucs_lightning.data.tracks import Track
from demucs_lightning.evaluation.results import Results, TrackResult, write_text
from demucs_lightning.evaluation.run import Evaluation, Outcome, Watch
from demucs_lightning.evaluation.summary import summary
from demucs_lightning.evaluation.table import left_out, line, table
from demucs_lightning.evaluation.tracks import TrackSet
from demucs_lightning.evaluation.unscored import count

log = logging.getLogger(__name__)

REPORT = "report.html"
TOLD = 10  # failures that are told, of more there is the number
FORM = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}<{remaining}{postfix}"


class Scoreboard(Watch):
    """A context manager that shows how ``part`` of an evaluation is getting on, and says in the
    end what could not be scored, and why.

    ``place`` says what computes; with ``quiet``, stdout is left to others.
    """

    def __init__(
        self, evaluation: Evaluation, part: TrackSet, *, place: str, quiet: bool = False
    ) -> None:
        self.evaluation, self.part, self.place, self.quiet = evaluation, part, place, quiet
        self._lock = threading.Lock()
        self._parts: dict[str, float] = {}  # seconds of audio by track
        self._faults: dict[str, str] = {}

    def __enter__(self) -> Self:
        evaluation, part = self.evaluation, self.part
        left = evaluation.left(part.tracks)
        done = len(part.tracks) - len(left)
        there = f", {done} scored already" if done else ""
        if _rank() == 0:
            self.say(
                f"{evaluation.workers[0].name} on {self.place} · {part.name} {part.subset}: "
                f"{count(len(part), 'track')}{there} · results go to {evaluation.folder}"
            )
        self._left = {*(track.name for track in left), *part.faults}
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
        for reason in list(self._faults.values())[:TOLD]:
            print(f"failed: {reason}", file=sys.stderr)
        if len(self._faults) > TOLD:
            print(f"failed: {len(self._faults) - TOLD} more.", file=sys.stderr)

    def say(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr if self.quiet else sys.stdout)

    def progress(self, track: Track, part: float) -> None:
        # Separated is not scored: the rest counts when that is done.
        self._show(track.name, 0.9 * part * track.duration)

    def done(self, track: Track, result: TrackResult) -> None:
        self._over(track.name, track.duration)
        self.say(f"{self._number()} {line(result, self.evaluation.sources)}")

    def elsewhere(self, track: Track) -> None:
        self._over(track.name, track.duration)

    def failed(self, name: str, reason: str) -> None:
        self._faults[name] = reason
        self._over(name, 0.0)
        self.say(f"{self._number()} {name}: failed")

    def _number(self) -> str:
        return f"{len(self.part) - len(self._left)}/{len(self.part)}"

    def _over(self, name: str, seconds: float) -> None:
        self._left.discard(name)
        self._show(name, seconds)

    def _show(self, name: str, done: float) -> None:
        with self._lock:
            self._parts[name] = done
            seconds = sum(self._parts.values())
            speed = seconds / max(time.monotonic() - self._started, 1e-9)
            self._bar.set_description_str(f"{self._number()} {name}"[:40], refresh=False)
            self._bar.set_postfix_str(f"{speed:.1f} x real time", refresh=False)
            self._bar.update(min(seconds, self._bar.total or 0) - self._bar.n)


def _rank() -> int:
    """Of this process among those that torchrun, Slurm or Lightning started."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return int(next((os.environ[name] for name in names if os.environ.get(name)), 0))


def conclude(
    outcome: Outcome,
    wanted: Collection[str],
    *,
    report: bool,
    json_file: str | None = None,
    command: str = "the same command",
) -> None:
    """Print the table of the tracks ``wanted`` and write the rest; where others still have some of
    them to score, say which ``command`` prints it when they have."""
    results, left = outcome.results, outcome.left(wanted)
    stream = sys.stderr if json_file == "-" else sys.stdout
    if left:
        print(_waiting(outcome, len(left), command), file=stream)
    elif results.tracks:
        print(f"\n{table(results)}", file=stream)
        if len(results.sources) == 1:
            print(*left_out(results, ["sir"]), sep="\n", file=stream)
    if json_file:
        _write_summary(summary(outcome, wanted), json_file)
    if report and results.tracks and not left:
        write_report(results, quiet=json_file == "-")
    if outcome.faults:
        print(f"error: {unsuccessful(outcome)}", file=sys.stderr)


def unsuccessful(outcome: Outcome) -> str:
    """How many tracks failed."""
    number = len(outcome.faults)
    them = "it" if number == 1 else "them"
    return f"{count(number, 'track')} could not be scored: the same command tries {them} again."


def _waiting(outcome: Outcome, left: int, command: str) -> str:
    """What is known while others have ``left`` tracks to score."""
    number = len(outcome.results.tracks)
    busy = f" ({outcome.busy} of them now)" if outcome.busy else ""
    return (
        f"{number} of {count(outcome.of, 'track')} {'is' if number == 1 else 'are'} scored, and "
        f"other processes have {left} to score{busy}: once all results are in "
        f"{outcome.results.folder}, {command} prints the table and computes nothing anew."
    )


def _write_summary(content: dict[str, Any], file: str) -> None:
    written = json.dumps(content, indent=1, allow_nan=False)
    if file == "-":
        print(written)
    else:
        write_text(Path(file), written + "\n")


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
