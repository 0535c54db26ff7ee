"""What became of the tracks of a run: for people, and as JSON for programs."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from demucs_lightning.commands.explain import sentence
from demucs_lightning.commands.finding import Track
from demucs_lightning.separator import Report

NO_MEMORY = (
    "there is not enough memory, even for one short segment: --device cpu may have more, and a "
    "shorter --segment needs less"
)
# What errors call by the names of Python, at the start of a sentence.
OPTIONS = {
    **{name: f"--{name}" for name in ("segment", "overlap", "shifts", "seed", "device")},
    **{name: f"--{name}" for name in ("precision", "filename", "stems", "rate")},
    **{name: f"--{name.replace('_', '-')}" for name in ("batch_size", "two_stems", "exact_sum")},
    "bitrate": "--mp3-bitrate",
    "preset": "--mp3-preset",
}
SUBJECT = re.compile(rf"^({'|'.join(OPTIONS)})(?= is | has | needs | names | and |=)")
PHRASES = {
    "with segment=None": "without --no-split",
    "skip existing files or overwrite": "--skip-existing leaves it, --overwrite replaces it",
    "overwrite it, or ask for all": "--overwrite replaces it, or ask for all",
    "choose another filename": "choose another --filename",
    "and the folder as repo": "and the folder as --repo",
    "is no folder: repo must be": "is no folder: --repo must be",
    "try precision fp32": "try --precision fp32",
}


@dataclass
class Outcome:
    """What became of a track: ``done``, ``skipped``, ``planned``, ``failed``, ``interrupted`` or
    ``not reached``."""

    track: Track
    status: str
    files: dict[str, Path] = field(default_factory=dict)
    report: Report | None = None
    fault: str = ""
    kept: tuple[str, ...] = ()


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


def in_options(text: str) -> str:
    """A sentence about settings, as the options of the command."""
    text = SUBJECT.sub(lambda found: OPTIONS[found[1]], text)
    for phrase, instead in PHRASES.items():
        text = text.replace(phrase, instead)
    return text


def fault_of(error: BaseException, path: Path) -> str:
    """One sentence that names the file."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return f"{path}: {NO_MEMORY}."
    text = in_options(sentence(error))
    return text if str(path) in text else f"{path}: {text}"


def as_json(outcome: Outcome) -> dict[str, Any]:
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
