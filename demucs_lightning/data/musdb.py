"""MUSDB18-HQ and its free 7-second sample, as extracts.

150 songs of drums, bass, other and vocals (Rafii et al., 2017 and 2019), in `train/` (100) and
`test/` (50); 14 named songs of `train/` are the validation set, the other 86 the training set. A
part of the songs will do too. `download=True` fetches what is missing and never asks.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from demucs_lightning.data import disk
from demucs_lightning.data.download import fetch, unpack
from demucs_lightning.data.extracts import Extracts
from demucs_lightning.data.tracks import (
    STEM_MP4,
    Faults,
    Track,
    find_tracks,
    index_tracks,
    require_stems,
)

log = logging.getLogger(__name__)

SOURCES = ("drums", "bass", "other", "vocals")
SUBSETS = {
    "training": "train",
    "training_all": "train",
    "validation": "train",
    "test": "test",
}
VALIDATION = frozenset(
    {
        "Actions - One Minute Smile",
        "Clara Berry And Wooldog - Waltz For My Victims",
        "Johnny Lokke - Promises & Lies",
        "Patrick Talbot - A Reason To Leave",
        "Triviul - Angelsaint",
        "Alexander Ross - Goodbye Bolero",
        "Fergessen - Nos Palpitants",
        "Leaf - Summerghost",
        "Skelpolu - Human Mistakes",
        "Young Griffo - Pennies",
        "ANiMAL - Rockshow",
        "James May - On The Line",
        "Meaxic - Take A Step",
        "Traffic Experiment - Sirens",
    }
)


class Archive(NamedTuple):
    """A zip with `train/` and `test/` in it, perhaps inside one folder of the name of the zip."""

    title: str
    url: str
    size: int
    md5: str

    @property
    def filename(self) -> str:
        return self.url.rsplit("/", 1)[-1]


MUSDB18_HQ = Archive(
    "MUSDB18-HQ",
    "https://zenodo.org/records/3338373/files/musdb18hq.zip",
    22_656_664_047,
    "12d4f2ecd55245a4688754dd76363103",
)
MUSDB18_7S = Archive(
    "MUSDB18-7-STEMS",
    "https://zenodo.org/records/3270814/files/MUSDB18-7-STEMS.zip",
    147_209_385,
    "dc2bdfac5b46ce742bd60009866758a5",
)


class MusdbHQ(Extracts):
    """MUSDB18-HQ below `root`, which holds `train/<track>/<stem><ext>` and `test/...`.

    `subset` is training, training_all (with the validation tracks), validation or test. `ext` is
    the suffix of the files; ".stem.mp4" reads `train/<track>.stem.mp4`. The other arguments, and
    the items, are those of `Extracts`. Raises FileNotFoundError naming the folder or stem that is
    missing, ValueError for an unknown subset or source, and what `fetch` and `unpack` raise.
    """

    archive = MUSDB18_HQ

    def __init__(  # noqa: PLR0913
        self,
        root: str | Path,
        subset: str = "training",
        sources: Sequence[str] = SOURCES,
        download: bool = False,
        segment: float | None = None,
        shift: float | None = None,
        normalize: bool = True,
        samplerate: int = 44100,
        channels: int = 2,
        ext: str = ".wav",
    ) -> None:
        if subset not in SUBSETS:
            raise ValueError(f"subset={subset!r} is unknown: it is one of {', '.join(SUBSETS)}.")
        if download:
            ensure(self.archive, Path(root))
        super().__init__(
            listed(self.archive, Path(root), subset, sources, ext),
            sources,
            segment=segment,
            shift=shift,
            normalize=normalize,
            samplerate=samplerate,
            channels=channels,
        )


class Musdb7s(MusdbHQ):
    """The official free sample of MUSDB18, 7 seconds of each song as `.stem.mp4`, 147 MB to fetch.

    Arguments and errors are those of `MusdbHQ`; the songs' terms are their own, non-commercial.
    """

    archive = MUSDB18_7S

    def __init__(  # noqa: PLR0913
        self,
        root: str | Path,
        subset: str = "training",
        sources: Sequence[str] = SOURCES,
        download: bool = False,
        segment: float | None = None,
        shift: float | None = None,
        normalize: bool = True,
        samplerate: int = 44100,
        channels: int = 2,
        ext: str = STEM_MP4,
    ) -> None:
        super().__init__(
            root, subset, sources, download, segment, shift, normalize, samplerate, channels, ext
        )


def _home(archive: Archive, root: Path) -> Path:
    """The folder that holds `train/` and `test/`: `root`, or the zip's own folder in it."""
    inner = root / Path(archive.filename).stem
    return inner if not (root / "train").is_dir() and inner.is_dir() else root


def ensure(archive: Archive, root: Path) -> None:
    for folder in (_home(archive, root) / "train", _home(archive, root) / "test"):
        _make_way(folder)
    home = _home(archive, root)
    if (home / "train").is_dir() and (home / "test").is_dir():
        log.info("%s is in %s already", archive.title, home)
        return
    disk.check_writable(root)
    path = root / archive.filename
    users_own = path.exists()
    fetch(archive.url, path, size=archive.size, md5=archive.md5)
    unpack(path, root)
    if not users_own:
        path.unlink()


def _make_way(folder: Path) -> None:
    """Remove an empty folder; raise FileExistsError, before the download, if it holds no track."""
    if not folder.is_dir() or any(find_tracks(folder).values()):
        return
    if folder.is_symlink() or any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} is there but holds no track: move it away, and download=True fetches it."
        )
    folder.rmdir()


def listed(  # noqa: PLR0913
    archive: Archive,
    root: Path,
    subset: str,
    sources: Sequence[str],
    ext: str,
    *,
    faults: Faults | None = None,
) -> list[Track]:
    """The tracks of a subset; ``faults`` as for `index_tracks`."""
    folder = _home(archive, root) / SUBSETS[subset]
    found = find_tracks(folder, (ext,))
    if subset in ("training", "validation"):
        wanted = subset == "validation"
        found = {name: files for name, files in found.items() if (name in VALIDATION) == wanted}
    if not found:
        layout = f"<track>{STEM_MP4}" if ext == STEM_MP4 else f"<track>/drums{ext} and so on"
        raise FileNotFoundError(
            f"No {subset} tracks of {archive.title}: {layout} was looked for in {folder}, and "
            "download=True fetches the set."
        )
    require_stems(found, sources, folder=folder)
    for name, files in list(found.items()):
        if lacking := [source for source in sources if source not in files]:
            error = FileNotFoundError(
                f"{folder / name / (lacking[0] + ext)} is missing: every track needs "
                f"{', '.join(sources)}."
            )
            if faults is None:
                raise error
            faults[name] = error
            del found[name]
    return index_tracks(folder, found, sources, faults=faults)
