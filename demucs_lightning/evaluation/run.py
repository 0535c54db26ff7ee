"""An evaluation: every track of a set separated and scored, into a results folder.

What the folder has already stays, if it is of the same model, settings and files: a run that was
killed goes on where it stopped. Several processes may fill one folder at once, see `claims`. While
one track is scored in a thread, the next one is separated.
"""

import logging
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from demucs_lightning import audio
from demucs_lightning.data.tracks import Track
from demucs_lightning.evaluation.claims import Claims
from demucs_lightning.evaluation.estimates import Judged
from demucs_lightning.evaluation.keys import Keys
from demucs_lightning.evaluation.results import (
    CorruptResult,
    Excerpt,
    Results,
    TrackResult,
    excerpt_folder,
    read_track,
    track_id,
    track_path,
    write_track,
)
from demucs_lightning.evaluation.scoring import score
from demucs_lightning.evaluation.settled import settle
from demucs_lightning.evaluation.signals import Buffer, Mixture, References, excerpt_of, loudest
from demucs_lightning.evaluation.tracks import TrackSet
from demucs_lightning.evaluation.unscored import joined
from demucs_lightning.separator.background import Behind

log = logging.getLogger(__name__)

CLAIMS = "claims"
EXCERPT = 8.0  # seconds
# What may be wrong with one track, while the others are in order.
FAILURES = (ValueError, OSError, torch.OutOfMemoryError, MemoryError)


class Watch:
    """Is told how an evaluation goes, from several threads; this one keeps it to itself."""

    def progress(self, track: Track, part: float) -> None:
        """So much of the track is separated."""

    def done(self, track: Track, result: TrackResult) -> None:
        """The track is scored."""

    def elsewhere(self, track: Track) -> None:
        """Another process has scored the track."""

    def failed(self, name: str, reason: str) -> None:
        """The track of that name can't be scored, for a reason in one sentence."""


@dataclass(frozen=True)
class Outcome:
    """``results`` of all tracks that are scored by now, ``of`` so many; ``busy`` ones are being
    scored by other processes, and ``faults`` say why others are not."""

    results: Results
    of: int
    busy: int
    faults: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return len(self.results.tracks) == self.of

    def left(self, names: Collection[str]) -> list[str]:
        """Those of these tracks that nobody has scored yet, and that nothing is wrong with."""
        scored = {result.track for result in self.results.tracks}
        return [name for name in names if name not in scored and name not in self.faults]


@dataclass(frozen=True)
class Job:
    """A track that is separated."""

    track: Track
    mixture: Mixture
    estimates: Buffer
    elapsed: float
    machine: dict[str, Any]


class Evaluation:
    """Scores of ``data`` in ``folder``, where those of a former run stay.

    ``workers`` are the same, each on a device of its own. ``excerpts``: keep a few seconds of every
    track to listen to. Raises ValueError where the folder holds results of other settings, where
    nothing can be scored, and what the workers' ``check`` raises.
    """

    def __init__(
        self, folder: Path, workers: Sequence[Judged], data: TrackSet, *, excerpts: bool = True
    ) -> None:
        self.folder, self.workers, self.data, self.excerpts = folder, workers, data, excerpts
        if not len(data):
            raise ValueError(f"{data.place} has no tracks of the subset {data.subset} to score.")
        self.sources = common(workers[0], data)
        self.settings = settle(folder, workers[0], data, self.sources)
        self._keys = Keys(workers[0], self.settings, self.sources)
        self._done: dict[str, TrackResult] = {}
        self._faults: dict[str, str] = {}
        self._told: set[str] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def left(self, tracks: Sequence[Track]) -> list[Track]:
        """Those that have no result yet, the longest first; says which results are of no use."""
        missing = [track for track in tracks if not self._is_done(track, tell=True)]
        return sorted(missing, key=lambda track: -track.duration)

    def run(self, part: TrackSet, watch: Watch | None = None) -> Outcome:
        """Score ``part``, all tracks of the set or some of them, as far as nobody else does.

        What is wrong with a track is in the outcome, and the others go on. Raises OSError where
        results can't be written.
        """
        watch, pending = watch or Watch(), self.left(part.tracks)
        unfit = {**part.faults, **self.workers[0].check(pending, self.sources)}
        for name, error in unfit.items():
            self._fail(name, error, watch)
        pending = [track for track in pending if track.name not in unfit]
        if not pending:  # then the folder need not even be writable
            return self.outcome()
        with Claims(self.folder / CLAIMS) as claims:
            work = partial(self._work, pending=pending, claims=claims, watch=watch)
            if len(self.workers) == 1:
                work(self.workers[0])
            else:
                self._together(work)
        return self.outcome()

    def outcome(self) -> Outcome:
        """What there is by now."""
        claims = Claims(self.folder / CLAIMS)
        missing = [track for track in self.data.tracks if not self._is_done(track)]
        busy = [track for track in missing if claims.is_taken(track_id(track.name))]
        found = sorted(self._done.values(), key=lambda result: result.track)
        results = Results(self.folder, self.settings, found)
        # What failed here, another process may have scored.
        faults = {name: why for name, why in self._faults.items() if name not in self._done}
        return Outcome(results, len(self.data), len(busy), faults)

    def _together(self, work: Any) -> None:
        with ThreadPoolExecutor(len(self.workers)) as threads:
            try:
                list(threads.map(work, self.workers))
            finally:  # Ctrl-C ends the others, too
                self._stopped.set()

    def _work(self, judged: Judged, *, pending: list[Track], claims: Claims, watch: Watch) -> None:
        with Behind(1) as behind:
            while (track := self._next(pending, claims, watch)) is not None:
                try:
                    job = self._separate(judged, track, watch)
                except FAILURES as error:
                    self._fail(track.name, error, watch)
                    claims.release(track_id(track.name))
                    continue
                behind.run([partial(self._score, job, claims, watch)])

    def _next(self, pending: list[Track], claims: Claims, watch: Watch) -> Track | None:
        """A track that nobody works on, claimed."""
        with self._lock:
            for track in list(pending):
                name = track_id(track.name)
                if self._stopped.is_set() or not claims.take(name):
                    continue
                pending.remove(track)
                if not self._is_done(track):
                    return track
                claims.release(name)
                watch.elsewhere(track)
        return None

    def _separate(self, judged: Judged, track: Track, watch: Watch) -> Job:
        def progress(part: float) -> None:
            if self._stopped.is_set():
                raise KeyboardInterrupt
            watch.progress(track, part)

        started, mixture = time.monotonic(), Mixture(track)
        estimates = judged.estimates(track, mixture, self.sources, progress)
        return Job(track, mixture, estimates, time.monotonic() - started, judged.machine)

    def _score(self, job: Job, claims: Claims, watch: Watch) -> None:
        track, started = job.track, time.monotonic()
        try:
            key, content = self._keys.of_files(track), self._keys.of_content(track)
            references = References(track, self.sources, job.mixture.channels)
            scores = score(
                lambda start, stop: (references.read(start, stop), job.estimates.read(start, stop)),
                track.frames,
                samplerate=track.samplerate,
                sources=self.sources,
            )
            part = self._excerpt(job, references) if self.excerpts else None
        except FAILURES as error:
            self._fail(track.name, error, watch)
        else:
            result = TrackResult(
                key=key,
                content=content,
                track=track.name,
                samplerate=track.samplerate,
                seconds=track.duration,
                elapsed=job.elapsed + time.monotonic() - started,
                sources=scores,
                excerpt=part,
                machine=job.machine,
            )
            write_track(self.folder, result)
            self._done[track.name] = result
            watch.done(track, result)
        claims.release(track_id(track.name))

    def _excerpt(self, job: Job, references: References) -> Excerpt:
        track, folder = job.track, excerpt_folder(self.folder, job.track.name)
        part = loudest(job.mixture, track.frames, seconds=EXCERPT)
        start = round(part.start * track.samplerate)
        stop = min(track.frames, start + round(part.seconds * track.samplerate))
        pieces = {"mixture": excerpt_of(job.mixture, start, stop)}
        for kind, signals in (("reference", references), ("estimate", job.estimates)):
            stems = zip(self.sources, signals.read(start, stop), strict=True)
            pieces |= {f"{source}.{kind}": samples for source, samples in stems}
        for name, samples in pieces.items():
            audio.write(folder / f"{name}.flac", samples, samplerate=track.samplerate)
        return part

    def _fail(self, name: str, error: BaseException, watch: Watch) -> None:
        memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
        text = "there is not enough memory for it" if memory else _sentence(error)
        self._faults[name] = f"{name}: {text.rstrip('.')}."
        watch.failed(name, self._faults[name])

    def _is_done(self, track: Track, *, tell: bool = False) -> bool:
        """Whether there is a result of these settings and files; with ``tell``, why not."""
        if track.name in self._done:
            return True
        path = track_path(self.folder, track.name)
        try:
            result = read_track(path)
        except FileNotFoundError:
            return False
        except CorruptResult as error:
            self._tell(tell, f"{error} The track is scored again.")
            return False
        windows = {len(scores.sdr) for scores in result.sources.values()}
        if set(result.sources) != set(self.sources) or len(windows) > 1:
            lacks = "it lacks scores. The track is scored again."
            self._tell(tell, f"{path} is damaged: {lacks}")
            return False
        if not self._is_of(result, track):
            self._tell(tell, f"{track.name}: its files have changed, so it is scored again.")
            return False
        self._done[track.name] = result
        return True

    def _is_of(self, result: TrackResult, track: Track) -> bool:
        try:
            if result.key == self._keys.of_files(track):
                return True
            return result.content == self._keys.of_content(track)
        except OSError:  # a file that can't be read is told where the track is scored
            return False

    def _tell(self, tell: bool, text: str) -> None:
        if tell and text not in self._told:
            self._told.add(text)
            log.warning("%s", text)


def common(judged: Judged, data: TrackSet) -> list[str]:
    """The sources to score, in the order of the data; ValueError if there are none."""
    found = [source for source in data.sources if source in judged.sources]
    if not found:
        raise ValueError(
            f"{judged.name} has {joined(judged.sources)}, and {data.place} has "
            f"{joined(data.sources)}: no source is in common, so nothing can be scored."
        )
    alone = [
        f"{name} alone has {joined(others)}"
        for name, sources in ((judged.name, judged.sources), (data.place, data.sources))
        if (others := [source for source in sources if source not in found])
    ]
    if alone:
        log.warning("Only %s will be scored: %s.", joined(found), joined(alone))
    return found


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split())
