"""One track after the other through a `Separator`: which there are, what becomes of each."""

import math
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from demucs_lightning import audio
from demucs_lightning.commands.explain import sentence
from demucs_lightning.commands.progress import shown
from demucs_lightning.separator import (
    Choice,
    Plan,
    Report,
    Separator,
    Target,
    described,
    execute,
    plan,
)
from demucs_lightning.separator.choice import Parts
from demucs_lightning.separator.files import names
from demucs_lightning.separator.names import check_template, template_for
from demucs_lightning.separator.room import Room, check_room, room_of

# What is looked for in folders. A file that is named is tried, whatever it is called.
SUFFIXES = {
    *(".wav", ".wave", ".w64", ".rf64", ".flac", ".aiff", ".aif", ".aifc", ".au", ".caf", ".wv"),
    *(".mp3", ".mp2", ".m4a", ".m4b", ".mp4", ".aac", ".ogg", ".oga", ".opus", ".wma", ".ac3"),
    *(".ape", ".tta", ".mka", ".mkv", ".webm", ".mov", ".avi"),
}
NO_MEMORY = (
    "there is not enough memory, even for one short segment: --device cpu may have more, and a "
    "shorter --segment needs less"
)
APART = '--filename "{track}.{trackext}/{stem}.{ext}" tells them apart.'
FAILURES = (ValueError, OSError, torch.OutOfMemoryError, MemoryError)


@dataclass(frozen=True)
class Track:
    """A file, and the folders between the one that was asked for and it."""

    path: Path
    below: Path = Path()
    fault: str = ""


def found(paths: Sequence[Path], *, leaving_out: Sequence[Path]) -> list[Track]:
    """The files that are named, and those in folders that are, each once and in order; not those
    in folders of ``leaving_out``, where stems go, that lie inside a folder that is named."""
    tracks: dict[str, Track] = {}
    for path in paths:
        if not os.path.isdir(path):  # False for a name that no file can have
            tracks.setdefault(os.path.realpath(path), Track(path))
            continue
        home = Path(os.path.realpath(path))
        places = [Path(os.path.realpath(place)) for place in leaving_out]
        places = [place for place in places if home in place.parents]
        inside = [file for file in sorted(path.rglob("*")) if _is_track(file, path, places)]
        for file in inside:
            tracks.setdefault(os.path.realpath(file), Track(file, file.relative_to(path).parent))
        if not inside:
            tracks[str(home)] = Track(path, fault=f"{path} is a folder without audio files.")
    return list(tracks.values())


def _is_track(file: Path, folder: Path, leaving_out: Sequence[Path]) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    if hidden or file.suffix.lower() not in SUFFIXES or not file.is_file():
        return False
    return not {*leaving_out} & {*Path(os.path.realpath(file)).parents}


@dataclass
class Outcome:
    """What became of a track: ``done``, ``skipped``, ``planned`` or ``failed``."""

    track: Track
    status: str
    files: dict[str, Path] = field(default_factory=dict)
    report: Report | None = None
    fault: str = ""
    kept: tuple[str, ...] = ()


class Run:
    """Tracks that are separated into a folder, and what is said of them.

    With ``dry``, they are only checked; with ``json``, what is said goes to stderr.
    """

    def __init__(  # noqa: PLR0913
        self,
        separator: Separator,
        folder: Path,
        choice: Choice,
        target: Target,
        *,
        dry: bool = False,
        json: bool = False,
    ) -> None:
        self.separator, self.folder, self.choice, self.target = separator, folder, choice, target
        self.dry, self.json = dry, json
        self.outcomes: list[Outcome] = []
        self.interrupted = False
        self._asked = 0
        self._taken: dict[Path, Path] = {}

    @property
    def complete(self) -> bool:
        return not self.interrupted and all(each.status != "failed" for each in self.outcomes)

    def check(self) -> None:
        """Raise what would fail for every track."""
        parts = Parts(self.choice, self.separator.model).names
        check_template(
            template_for(self.target.filename, self.target.format, len(parts)), self.target.format
        )
        audio.check_encoder(
            f"{parts[0]}.{self.target.format}",
            samplerate=self.target.rate or self.separator.samplerate,
            channels=self.separator.audio_channels,
            encoding=audio.Encoding(self.target.subtype, self.target.bitrate, self.target.preset),
        )

    def say(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr if self.json else sys.stdout)

    def tracks(self, tracks: Sequence[Track]) -> None:
        """Separate all; what fails is said and the others go on. Ctrl-C and SIGTERM end it.

        Raises OSError, before anything is computed, where a disk has no room for all of them.
        """
        self._asked = len(tracks)
        with terminable():
            try:
                self._check_names(tracks)
                self._check_room(tracks)
                for number, track in enumerate(tracks, start=1):
                    outcome = self._outcome(track, f"{number}/{len(tracks)}")
                    self._taken.update(dict.fromkeys(outcome.files.values(), track.path))
                    self.outcomes.append(outcome)
                    self._tell(outcome)
            except KeyboardInterrupt:
                self.interrupted = True

    def _outcome(self, track: Track, number: str) -> Outcome:
        try:
            planned = self._planned(track)
            files, kept = planned.files, planned.kept
            if self.dry and not planned.skipped:
                check_room([room_of(planned)], purpose=f"separate {planned.path}")
            if self.dry:
                status = "skipped" if planned.skipped else "planned"
                return Outcome(track, status, files, kept=kept)
            channels, width = planned.reader.channels, self.separator.audio_channels
            if channels > width:
                self.say(f"{track.path}: {width} of its {channels} channels at a time.")
            with shown(f"{number} {track.path.name}", planned.reader.info.duration) as progress:
                report = execute(self.separator, planned, progress)
            return Outcome(track, "skipped" if report.skipped else "done", files, report, kept=kept)
        except FAILURES as error:
            return Outcome(track, "failed", fault=fault_of(error, track.path))
        except RuntimeError as error:
            if "allocate memory" not in str(error):
                raise
            return Outcome(track, "failed", fault=fault_of(MemoryError(), track.path))

    def _planned(self, track: Track) -> Plan:
        if track.fault:
            raise ValueError(track.fault)
        target = replace(self.target, below=track.below)
        for file in self._names(track):
            if other := self._taken.get(file):
                raise ValueError(
                    f"{track.path} would take the place of the stems of {other}. {APART}"
                )
        return plan(self.separator, track.path, self.folder, self.choice, target)

    def _check_names(self, tracks: Sequence[Track]) -> None:
        """Say which tracks have stems of one name, before any is separated."""
        owners: dict[Path, Path] = {}
        for track in tracks:
            files = self._names(track)
            if other := next((owners[file] for file in files if file in owners), None):
                tqdm.write(
                    f"{other} and {track.path} give stems of the same names: only the first that "
                    f"can be separated is. {APART}",
                    file=sys.stderr,
                )
            owners.update({file: track.path for file in files if file not in owners})

    def _check_room(self, tracks: Sequence[Track]) -> None:
        """Raise OSError where the disks have no room for all that will be written."""
        rooms: list[Room] = []
        files: set[Path] = set()
        for track in tracks:
            try:
                planned = self._planned(track)
                if planned.skipped or files & {*planned.written}:
                    continue
                room = room_of(planned)
                check_room([room], purpose="")  # a damaged header may promise terabytes
            except FAILURES:  # which its turn will tell
                continue
            rooms.append(room)
            files.update(planned.written)
        if len(rooms) > 1:  # or its turn will tell
            check_room(rooms, purpose=f"separate {len(rooms)} tracks")

    def _names(self, track: Track) -> list[Path]:
        """The files of a track; none where its turn will tell what is wrong with it."""
        if track.fault:
            return []
        target = replace(self.target, below=track.below)
        try:
            files = names(self.separator, track.path, self.folder, self.choice, target)
        except FAILURES:
            return []
        return list(files.values())

    def _tell(self, outcome: Outcome) -> None:
        path, report = outcome.track.path, outcome.report
        match outcome.status:
            case "failed":
                # Why it failed is told once: where it can't be lost among the other tracks.
                text = f"{path}: failed." if self._asked > 1 else f"error: {outcome.fault}"
                tqdm.write(text, file=sys.stderr)
            case "skipped":
                self.say(f"{path}: skipped, its stems are there.")
            case "planned":
                self.say("\n".join([f"{path}:", *(f"  {file}" for file in paths(outcome))]))
            case _ if report is not None:
                speed = report.seconds / max(report.elapsed, 1e-9)
                text = f"{path}: {listed(outcome)}; {speed:.1f} x real time"
                if kept := len(outcome.kept):
                    text += f"; {kept} stem{'s' * (kept > 1)} of it {'were' if kept > 1 else 'was'}"
                    text += " there and stayed"
                if report.gain < 1:
                    quieter = -20 * math.log10(report.gain)
                    text += f"; all are {quieter:.1f} dB quieter, as they would clip"
                self.say(f"{text}.")

    def summarise(self) -> None:
        """Say how it ended, where that isn't plain."""
        counts = {
            status: sum(each.status == status for each in self.outcomes)
            for status in ("done", "planned", "skipped", "failed")
        }
        partly = sum(bool(each.kept) and each.status != "skipped" for each in self.outcomes)
        named = {status: f"{count} {status}" for status, count in counts.items() if count}
        for status in {"done", "planned"} & {*named} if partly else ():
            named[status] += f" ({partly} where some stems were there and stayed)"
        text = ", ".join(named.values())
        if self.interrupted:
            rest = self._asked - len(self.outcomes)
            text = ", ".join(filter(None, [text, f"{rest} not separated"]))
            self.say("Interrupted: no half-written file is left.")
        if self._asked > 1 or self.interrupted:
            self.say(f"{self._asked} track{'s' * (self._asked > 1)}: {text}.")
        failed = [each for each in self.outcomes if each.status == "failed"]
        if failed and self._asked > 1:
            lines = [f"  {each.fault}" for each in failed]
            tqdm.write("\n".join(["failed:", *lines]), file=sys.stderr)

    def as_json(self) -> dict[str, Any]:
        separator = self.separator
        return {
            "device": described(separator.devices),
            "precision": separator.precision,
            "folder": str(self.folder),
            "complete": self.complete,
            "interrupted": self.interrupted,
            "tracks": [_as_json(each) for each in self.outcomes],
        }


def paths(outcome: Outcome) -> list[Path]:
    """The files of a track that are not kept; all stems may be in one."""
    files = [file for name, file in outcome.files.items() if name not in outcome.kept]
    return list(dict.fromkeys(files))


def listed(outcome: Outcome) -> str:
    """The files of a track in a line."""
    files = paths(outcome)
    if len(files) == 1 or len({file.parent for file in files}) > 1:
        return ", ".join(map(str, files))
    return f"{', '.join(file.name for file in files)} in {files[0].parent}"


def fault_of(error: BaseException, path: Path) -> str:
    """One sentence that names the file."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return f"{path}: {NO_MEMORY}."
    text = sentence(error)
    return text if str(path) in text else f"{path}: {text}"


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM is what Ctrl-C is: files that are being written go."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _as_json(outcome: Outcome) -> dict[str, Any]:
    report = outcome.report
    done = report is not None and not report.skipped
    return {
        "track": str(outcome.track.path),
        "status": outcome.status,
        "error": outcome.fault or None,
        "files": {name: str(file) for name, file in outcome.files.items()},
        "kept": list(outcome.kept),
        "seconds": report.seconds if report else None,
        "elapsed": report.elapsed if report and done else None,
        "gain": report.gain if report and done else None,
    }
