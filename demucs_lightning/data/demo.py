"""The demo songs: a small data set of music that the project makes by itself.

`make_demo_songs` writes 16 songs in the layout of MUSDB18-HQ, `root/{train,valid,test}/<title>/`
with mixture, drums, bass, other and vocals as 16-bit stereo WAV at 44.1 kHz, every mixture the
exact sum of its stems. Equal arguments give equal bytes on one machine, whatever the number of
jobs. All songs differ in key, tempo, progressions, melody and timbres, so the test songs are new to
a model that has trained on the others. `DemoSongs` reads them. The music is made in `band`.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from glob import escape
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from demucs_lightning import audio
from demucs_lightning.data.band.arranger import write_song
from demucs_lightning.data.band.instruments import SAMPLERATE
from demucs_lightning.data.band.songwriter import Plan, plan_songs
from demucs_lightning.data.band.studio import SOURCES, perform
from demucs_lightning.data.cache import AUDIO_CACHE
from demucs_lightning.data.disk import check_writable, locked
from demucs_lightning.data.extracts import Extracts
from demucs_lightning.data.tracks import INDEX, find_tracks, index_tracks, require_stems

VERSION = 1  # of the music: raise it when equal arguments would give other songs
MARKER = "demo_songs.json"
DRAFT = ".draft"  # behind the name of a folder that songs are made in
SUBSETS = {"training": "train", "validation": "valid", "test": "test"}


class DemoSongs(Extracts):
    """Extracts of the demo songs, see `Extracts`; `subset` is training, validation or test.

    Makes the songs if they are not there. Raises ValueError for an unknown subset or source, and
    FileExistsError if `root` holds something else.
    """

    def __init__(  # noqa: PLR0913
        self,
        root: str | Path,
        subset: str = "training",
        sources: Sequence[str] = SOURCES,
        segment: float | None = None,
        shift: float | None = None,
        normalize: bool = True,
        samplerate: int = SAMPLERATE,
        channels: int = 2,
    ) -> None:
        if subset not in SUBSETS:
            raise ValueError(f"subset={subset!r} is unknown: it is one of {', '.join(SUBSETS)}.")
        folder = make_demo_songs(root, **_marker(Path(root)).get("settings", {})) / SUBSETS[subset]
        found = find_tracks(folder)
        require_stems(found, sources, folder=folder)
        super().__init__(
            index_tracks(folder, found, sources),
            sources,
            segment=segment,
            shift=shift,
            normalize=normalize,
            samplerate=samplerate,
            channels=channels,
        )


def make_demo_songs(
    root: str | Path,
    *,
    songs: Sequence[int] = (10, 2, 4),
    seconds: float = 24.0,
    seed: int = 0,
    jobs: int = 2,
) -> Path:
    """Record the songs into `root`, all or nothing, unless just these are there; returns `root`.

    `songs` counts those of train, valid and test, of about `seconds` each; `jobs` threads record.
    Another set of demo songs at `root` is replaced, while files of any other kind in it stay.
    Raises FileExistsError where `root` holds something, but no demo songs, ValueError where it is
    a mount, and OSError where it can't be written.
    """
    root = Path(root)
    settings = {"songs": list(songs), "seconds": seconds, "seed": seed}
    if _is_made(root, settings):
        return root
    if not _marker(root) and root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} holds no demo songs: name a new or an empty folder.")
    if root.is_mount():  # which nothing can take the place of
        raise ValueError(f"{root} is a mount: name a folder in it, such as {root / 'songs'}.")
    for folder in (root, root.parent):  # where the songs are made before they take its place
        check_writable(folder)
    with locked(root):
        try:
            if not _is_made(root, settings):  # by another process meanwhile
                _make(root, settings, jobs)
        finally:
            with suppress(OSError):
                root.rmdir()  # where it stayed empty
    return root


def _make(root: Path, settings: dict, jobs: int) -> None:
    for left in root.parent.glob(f".{escape(root.name)}-*{DRAFT}"):  # by one that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(DRAFT, f".{root.name}-", root.parent) as workshop:
        draft = Path(workshop) / "draft"
        files = _record_all(draft, **settings, jobs=jobs)
        marker = {"version": VERSION, "settings": settings, "files": files}
        (draft / MARKER).write_text(json.dumps(marker, indent=1), encoding="utf-8")
        _replace(root, draft)


def _record_all(
    folder: Path, *, songs: Sequence[int], seconds: float, seed: int, jobs: int
) -> list[str]:
    """Record all songs into `folder`; the names of their files there."""
    plans = plan_songs(sum(songs), seed=seed)
    splits = np.repeat(list(SUBSETS.values()), songs)
    homes = [folder / split / plan.title for split, plan in zip(splits, plans, strict=True)]
    with ThreadPoolExecutor(jobs) as band:
        takes = band.map(lambda plan, home: _record(plan, home, seconds), plans, homes)
        recorded = list(tqdm(takes, "Recording demo songs", total=len(plans), unit="song"))
    return sorted(file.relative_to(folder).as_posix() for take in recorded for file in take)


def _record(plan: Plan, folder: Path, seconds: float) -> list[Path]:
    """Write, play and record one song: five files in `folder`, whose paths are returned."""
    stems = perform(write_song(plan, seconds=seconds))
    files = [folder / f"{name}.wav" for name in ("mixture", *SOURCES)]
    for file, samples in zip(files, (stems.sum(0, dtype=np.int16), *stems), strict=True):
        audio.write(file, torch.from_numpy(samples), samplerate=SAMPLERATE)
    return files


def _marker(root: Path) -> dict:
    """What `make_demo_songs` left to recognise its songs by; nothing in any other folder."""
    try:
        marker = json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return marker if isinstance(marker, dict) else {}


def _is_made(root: Path, settings: dict) -> bool:
    marker = _marker(root)
    return (
        marker.get("version") == VERSION
        and marker.get("settings") == settings
        and all((root / file).is_file() for file in marker["files"])
    )


def _replace(root: Path, draft: Path) -> None:
    """Put the draft in the place of `root`, with all files in there that are no demo songs."""
    ours = {*_marker(root).get("files", []), MARKER}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        cached = {INDEX, AUDIO_CACHE} & set(name.parts)
        if path.is_file() and not cached and name.as_posix() not in ours:
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, draft / name)
    if root.exists():
        root.rename(draft.with_name("replaced"))
    draft.rename(root)
