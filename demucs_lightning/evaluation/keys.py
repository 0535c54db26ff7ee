"""What the scores of a track depend on, as keys: of equal keys, nothing is computed twice.

The key that is looked at first has the sizes and times of the files, and costs no reading. Where it
differs, that of what is in the files decides: a copy on another machine has other times.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from demucs_lightning.data.cache import Recording
from demucs_lightning.data.tracks import Track
from demucs_lightning.evaluation.estimates import Judged


class Keys:
    """Of tracks that ``judged`` is scored on, in the settings of `settle`."""

    def __init__(self, judged: Judged, settings: Mapping[str, Any], sources: Sequence[str]) -> None:
        self._judged = judged
        self._common = {
            "model": [settings["model"]["klass"], settings["model"]["hash"]],
            "sources": list(sources),
            "separation": settings["separation"],
            "metrics": settings["metrics"],
        }

    def of_files(self, track: Track) -> str:
        """By size and time of the files."""

        def mark(path: Path) -> list[int]:
            stat = path.stat()
            return [stat.st_size, stat.st_mtime_ns]

        return self._key(track, mark)

    def of_content(self, track: Track) -> str:
        """By what is in the files, which are read whole."""

        @cache  # several stems may be in one file
        def mark(path: Path) -> str:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()

        return self._key(track, mark)

    def _key(self, track: Track, mark: Any) -> str:
        def marked(files: Mapping[str, Recording | None]) -> dict[str, Any]:
            return {name: [mark(file.path), file.stream] for name, file in files.items() if file}

        content = {
            **self._common,
            "track": [track.name, marked(track.files)],
            "estimates": marked(self._judged.files(track)),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
