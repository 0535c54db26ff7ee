"""What is judged: a model that separates each track, or a folder of stems that some tool made."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from demucs_lightning import audio
from demucs_lightning.data.cache import Recording
from demucs_lightning.data.tracks import MIXTURE, STEM_MP4, SUFFIXES, Files, Track, find_tracks
from demucs_lightning.evaluation.signals import Buffer, Mixture
from demucs_lightning.evaluation.unscored import joined
from demucs_lightning.separation import BagOfModels, Progress
from demucs_lightning.separator import Choice, Separator, described
from demucs_lightning.separator.choice import Parts

log = logging.getLogger(__name__)

TOLERANCE = 0.1  # seconds that an estimate may be longer or shorter than its reference


class Judged(Protocol):
    """``model`` and ``separation`` are what settings.json says of it."""

    name: str
    sources: list[str]
    model: dict[str, Any]
    separation: dict[str, Any] | None

    def files(self, track: Track) -> Files:
        """Those of the estimates, if they are files; their scores depend on them."""
        ...

    @property
    def machine(self) -> dict[str, Any]:
        """What computes, as each track's result says."""
        ...

    def check(self, tracks: Sequence[Track], sources: Sequence[str]) -> dict[str, Exception]:
        """What is known to keep tracks from being scored, by name."""
        ...

    def estimates(
        self,
        track: Track,
        mixture: Mixture,
        sources: Sequence[str],
        progress: Progress | None = None,
    ) -> Buffer:
        """The stems (S, C, T) of a track, at its rate and of its length."""
        ...


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model separates: the arguments of `Separator`, as ``test.*`` in conf/ has them, in a
    precision that is the same on every machine. ``batch_size`` None: as many as fit."""

    shifts: int = 1
    overlap: float = 0.25
    segment: float | None = None
    batch_size: int | None = None
    precision: str = "fp32"
    seed: int = 42


class Separated:
    """A model that separates the tracks' own mixtures, at their own level and rate, on ``device``.

    ``digest`` is `model_hash` of it. Raises what `Separator` raises.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        digest: str,
        device: str | torch.device = "auto",
        settings: Settings | None = None,
    ) -> None:
        settings = settings or Settings()
        self.separator = Separator(model, device=device, **asdict(settings))
        self.name, self.digest = name, digest
        self.sources = self.separator.sources
        members: Any = model.models if isinstance(model, BagOfModels) else [model]
        segments = {float(settings.segment or member.segment) for member in members}
        self.model: dict[str, Any] = {
            "name": name,
            "klass": " + ".join(dict.fromkeys(type(member).__name__ for member in members)),
            "hash": digest,
            "sources": self.sources,
        }
        self.separation: dict[str, Any] | None = {
            "shifts": settings.shifts,
            "overlap": settings.overlap,
            "segment": segments.pop() if len(segments) == 1 else None,  # None: each its own
            "precision": self.separator.precision,
            "seed": settings.seed,
        }

        self._batch_size = settings.batch_size

    @property
    def machine(self) -> dict[str, Any]:
        return machine(self.separator.devices, batch_size=self._batch_size)

    def files(self, track: Track) -> Files:
        return {}

    def check(self, tracks: Sequence[Track], sources: Sequence[str]) -> dict[str, Exception]:
        return {}

    def estimates(
        self,
        track: Track,
        mixture: Mixture,
        sources: Sequence[str],
        progress: Progress | None = None,
    ) -> Buffer:
        parts = Parts(Choice(sources), self.separator.model)
        blocks = self.separator.parts(mixture, parts, track.samplerate, progress=progress)
        buffer = Buffer(len(sources), mixture.channels, track.frames)
        buffer.fill(block for block, _ in blocks)
        return buffer


class Stems:
    """``<track>/<source>.wav`` (.flac .ogg .mp3 .m4a) or ``<track>.stem.mp4`` in a folder.

    A track is found by its name, or by the last part of it where that is the name of one only.
    Raises FileNotFoundError for a folder that holds no stems.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.resolve().name
        self._found = {name: files for name, files in find_tracks(folder).items() if files}
        if not self._found:
            raise FileNotFoundError(
                f"{folder} holds no stems: <track>/<source>.wav ({', '.join(SUFFIXES[1:])}) or "
                f"<track>{STEM_MP4} were looked for."
            )
        stems = {stem for files in self._found.values() for stem in files}
        self.sources = sorted(stems - {MIXTURE})
        self.model: dict[str, Any] = {
            "name": self.name,
            "klass": None,
            "hash": None,
            "sources": self.sources,
            "folder": str(folder.resolve()),
        }
        self.separation: dict[str, Any] | None = None

    @property
    def machine(self) -> dict[str, Any]:
        return machine([torch.device("cpu")])

    def check(self, tracks: Sequence[Track], sources: Sequence[str]) -> dict[str, Exception]:
        faults = {}
        for track in tracks:
            try:
                self._check(track, sources)
            except (ValueError, OSError) as error:
                faults[track.name] = error
        return faults

    def _check(self, track: Track, sources: Sequence[str]) -> None:
        files = self.files(track)
        if not files:
            raise ValueError(
                f"{self.folder} has no track of this name, or more than one: its tracks must be "
                "called as those of the data set."
            )
        if lacking := [source for source in sources if source not in files]:
            raise ValueError(
                f"{self.folder} has {joined(list(files))} of it, and lacks {joined(lacking)}."
            )
        for source in sources:
            self._check_form(files[source], track)

    def _check_form(self, file: Recording, track: Track) -> None:
        found = audio.info(file.path, file.stream, count=False)
        if found.samplerate != track.samplerate:
            raise ValueError(
                f"{file} has a rate of {found.samplerate} Hz and its reference one of "
                f"{track.samplerate} Hz: estimates are scored at the rate of the references."
            )
        if found.exact:
            _check_length(file, found.frames, track)

    def estimates(
        self,
        track: Track,
        mixture: Mixture,
        sources: Sequence[str],
        progress: Progress | None = None,
    ) -> Buffer:
        files = self.files(track)
        together = Buffer(len(sources), mixture.channels, track.frames)
        for number, source in enumerate(sources):
            file = files[source]
            try:
                stream = audio.stream(file.path, stream=file.stream, channels=mixture.channels)
            except ValueError as error:
                raise ValueError(f"{file} does not go with its reference: {error}") from error
            came = together.fill(stream, source=number)
            _check_length(file, came, track, tell=True)
        return together

    def files(self, track: Track) -> Files:
        """None where no track has that name, or several have."""
        short = track.name.rpartition("/")[2]
        ends = [
            name
            for name in self._found
            if name in (track.name, short) or name.endswith((f"/{track.name}", f"/{short}"))
        ]
        exact = [name for name in ends if name == track.name] or ends
        return self._found[exact[0]] if len(exact) == 1 else {}


def _check_length(file: Recording, frames: int, track: Track, *, tell: bool = False) -> None:
    if frames == track.frames:
        return
    rate, apart = track.samplerate, abs(frames - track.frames)
    lengths = f"{frames} samples ({frames / rate:.2f} s)"
    theirs = f"{track.frames} ({track.duration:.2f} s)"
    if apart > TOLERANCE * rate:
        raise ValueError(
            f"{file} has {lengths} and its reference {theirs}: they may differ by {TOLERANCE} s "
            "at most."
        )
    if tell:
        change = "cut" if frames > track.frames else "padded with silence"
        log.warning("%s has %s and its reference %s: it is %s.", file, lengths, theirs, change)


def machine(devices: Sequence[torch.device], *, batch_size: int | None = None) -> dict[str, Any]:
    """What may change a score by no more than rounding; ``batch_size`` None is what fits."""
    device = "CPU" if devices[0].type == "cpu" else described(devices)
    return {"device": device, "threads": torch.get_num_threads(), "batch_size": batch_size}


def model_hash(model: nn.Module) -> str:
    """sha256 over the names, types, shapes and bytes of the weights; of a bag, over those of its
    members' weights and over its own, which say what counts how much."""
    digest = hashlib.sha256()
    state: Mapping[str, Tensor] = model.state_dict()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy())
    if isinstance(model, BagOfModels):
        digest.update(repr(model.weights).encode())
    return digest.hexdigest()
