"""One track after the other through a `Separator`, and what is said of each."""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from demucs_lightning import audio
from demucs_lightning.commands.finding import Track
from demucs_lightning.commands.notes import notes
from demucs_lightning.commands.outcomes import Outcome, as_json, fault_of, listed, paths
from demucs_lightning.commands.progress import shown
from demucs_lightning.commands.signals import terminable
from demucs_lightning.separator import (
    Choice,
    Plan,
    Separator,
    Target,
    described,
    execute,
    plan,
)
from demucs_lightning.separator.choice import Parts
from demucs_lightning.separator.files import names
from demucs_lightning.separator.names import check_template, fields_of, template_for
from demucs_lightning.separator.room import Room, check_room, room_of

APART = '--filename "{track}.{trackext}/{stem}.{ext}" tells them apart.'
FAILURES = (ValueError, OSError, ArithmeticError, torch.OutOfMemoryError, MemoryError)
OF_A_TRACK = {"track", "title", "artist", "album"}  # fields that tell tracks apart


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
        self.left: list[Outcome] = []  # of an interrupted run
        self.interrupted = False
        self._asked = 0
        self._noted: dict[str, list[Path]] = {}
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
        self._asked, begun = len(tracks), 0
        with terminable():
            try:
                self._check_names(tracks)
                self._check_room(tracks)
                for begun, track in enumerate(tracks, start=1):
                    outcome = self._outcome(track, f"{begun}/{len(tracks)}")
                    self._taken.update(dict.fromkeys(outcome.files.values(), track.path))
                    self.outcomes.append(outcome)
                    self._tell(outcome)
            except KeyboardInterrupt:
                self.interrupted = True
                for number, track in enumerate(tracks, start=1):
                    if number > len(self.outcomes):
                        status = "interrupted" if number <= begun else "not reached"
                        self.left.append(Outcome(track, status))

    def _outcome(self, track: Track, number: str) -> Outcome:
        try:
            planned = self._planned(track)
            files, kept = planned.files, planned.kept
            self._note(planned)
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

    def _note(self, planned: Plan) -> None:
        """Say what the files can't hold of a track; of the next ones, `summarise` does."""
        for note in [] if planned.skipped else notes(planned):
            if note not in self._noted:
                name = f"{planned.path}: " if self._asked > 1 else ""
                tqdm.write(f"{name}{note}", file=sys.stderr)
            self._noted.setdefault(note, []).append(planned.path)

    def _planned(self, track: Track) -> Plan:
        if track.fault:
            raise ValueError(track.fault)
        target = replace(self.target, below=track.below)
        for file in self._names(track):
            if other := self._taken.get(file):
                raise ValueError(f"{track.path} would take the place of the stems of {other}.")
        return plan(self.separator, track.path, self.folder, self.choice, target)

    def _check_names(self, tracks: Sequence[Track]) -> None:
        """Say once which tracks have stems of one name, before any is separated.

        Raises ValueError where the template gives all of them one.
        """
        owners: dict[Path, Path] = {}
        pairs: list[tuple[Path, Path]] = []
        for track in tracks:
            files = self._names(track)
            if other := next((owners[file] for file in files if file in owners), None):
                pairs.append((other, track.path))
            owners.update({file: track.path for file in files if file not in owners})
        template = self.target.filename
        if pairs and template is not None and not OF_A_TRACK & {*fields_of(template)}:
            raise ValueError(
                f"filename is {template!r}: without {{track}} the stems of {pairs[0][0]} and "
                f"{pairs[0][1]} have one name."
            )
        if pairs:
            more = len(pairs) - 1
            others = f", and so do {more} other{'s' * (more > 1)}" if more else ""
            tqdm.write(
                f"{pairs[0][0]} and {pairs[0][1]} give stems of the same names{others}: only the "
                f"first that can be separated is. {APART}",
                file=sys.stderr,
            )

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
        for note, (_, *others) in self._noted.items():
            if others:
                tqdm.write(f"{', '.join(map(str, others))}: {note}", file=sys.stderr)
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
            "tracks": [as_json(each) for each in [*self.outcomes, *self.left]],
        }
