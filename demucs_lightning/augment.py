"""Data augmentation of a batch of stems, on the device that holds it.

Every augmentation is called as `augmentation(stems (B, S, C, T), generator) -> stems` and returns a
new tensor of the same type. It draws only from `generator`, which lives on the device of the stems,
so a step's augmentation is a function of the generator's seed. Distributions are those of Demucs
(Défossez et al. 2019).

A setting out of its range raises ValueError with the key of the configuration.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Generator, Tensor

from demucs_lightning.pool import RemixPool
from demucs_lightning.repitch import repitch

MUSIC_WINDOW = 0.08  # seconds that a change of tempo moves as one piece
VOICE_WINDOW = 0.04


@dataclass(frozen=True)
class Shift:
    """Delay each source by 0 to `shift` - 1 samples (all alike if `same`): (..., T - shift)."""

    shift: int
    same: bool = False

    def __post_init__(self):
        _require(self.shift >= 0, f"augment.shift is {self.shift}: it must be 0 or more.")

    def __call__(self, stems: Tensor, generator: Generator) -> Tensor:
        if self.shift == 0:
            return stems
        batch, sources, _, time = stems.shape
        _require(
            time > self.shift,
            f"augment.shift is {self.shift} samples, but an extract has only {time}: "
            "make segment longer or augment.shift shorter.",
        )
        size = (batch, 1 if self.same else sources)
        offsets = torch.randint(self.shift, size, generator=generator, device=stems.device)
        rows, columns = _grid(stems)
        # A view of every possible start; indexing copies only the chosen ones.
        return stems.unfold(-1, time - self.shift, 1)[rows, columns, :, offsets]


@dataclass(frozen=True)
class FlipChannels:
    """Swap left and right of each source with probability 1/2; only stereo changes."""

    def __call__(self, stems: Tensor, generator: Generator) -> Tensor:
        if stems.shape[2] != 2:
            return stems
        return torch.where(_coin(stems, generator) > 0, stems.flip(2), stems)


@dataclass(frozen=True)
class FlipSign:
    """Negate each source with probability 1/2."""

    def __call__(self, stems: Tensor, generator: Generator) -> Tensor:
        return stems * (2 * _coin(stems, generator) - 1).to(stems.dtype)


@dataclass(frozen=True)
class Scale:
    """With probability `proba` for the batch, a uniform gain, `min` to `max`, for each source."""

    proba: float = 1.0
    min: float = 0.25
    max: float = 1.25

    def __post_init__(self):
        _require_proba("scale", self.proba)
        _require(
            0 <= self.min <= self.max < math.inf,
            f"augment.scale.min is {self.min} and augment.scale.max {self.max}: "
            "they must be finite gains with 0 <= min <= max.",
        )

    def __call__(self, stems: Tensor, generator: Generator) -> Tensor:
        gains = torch.empty(stems.shape[:2], device=stems.device)
        gains.uniform_(self.min, self.max, generator=generator)
        gains = torch.where(_happens(self.proba, generator), gains, 1.0)
        return stems * gains[:, :, None, None].to(stems.dtype)


@dataclass(frozen=True)
class Remix:
    """With probability `proba` for the batch, make new mixtures of its stems.

    Each source is permuted on its own within each group of `group_size` examples (0 or None: the
    whole batch), so that the distribution doesn't depend on how many GPUs share a batch. Where
    `pool` is above 0, `RemixPool` takes its place.
    """

    proba: float = 1.0
    group_size: int | None = 4
    pool: int = 0

    def __post_init__(self):
        _require_proba("remix", self.proba)
        _require(
            (self.group_size or 0) >= 0,
            f"augment.remix.group_size is {self.group_size}: "
            "it must be a number of examples, or 0 for the whole batch.",
        )
        _require(self.pool >= 0, f"augment.remix.pool is {self.pool}: it must be 0 or more.")

    def check_batch(self, batch_size: int) -> None:
        """Raise ValueError unless the groups fill a batch exactly."""
        _require(
            batch_size % (self.group_size or batch_size) == 0,
            f"augment.remix.group_size={self.group_size} does not divide batch_size={batch_size}: "
            "set it to a divisor, to 0 for the whole batch, or augment.remix.pool to 3.",
        )

    def __call__(self, stems: Tensor, generator: Generator) -> Tensor:
        batch, sources = stems.shape[:2]
        self.check_batch(batch)
        size = self.group_size or batch
        keys = torch.rand(batch // size, size, sources, generator=generator, device=stems.device)
        rows, columns = _grid(stems)
        permuted = (keys.argsort(dim=1) + rows[::size, :, None]).flatten(0, 1)
        return stems[torch.where(_happens(self.proba, generator), permuted, rows), columns]


@dataclass(frozen=True)
class Repitch:
    """With probability `proba` for each example, change pitch and tempo: (..., output_length(T)).

    Pitch moves by whole semitones, uniform in ±`max_pitch`; tempo by a Gaussian percentage of
    deviation `tempo_std`, clipped to ±`max_tempo`. An example has one draw (`same`) or one for each
    source. Sources in `vocals` (indices) are stretched in shorter pieces. All examples are cut to
    the length that the fastest tempo leaves. The draws are the host's, which skips the work on the
    others.
    """

    proba: float = 0.0
    max_pitch: int = 2
    max_tempo: float = 12.0
    tempo_std: float = 5.0
    same: bool = True
    vocals: Sequence[int] = (3,)
    samplerate: int = 44100

    def __post_init__(self):
        _require_proba("repitch", self.proba)
        for name, limit in [("max_pitch", 12), ("max_tempo", 50), ("tempo_std", math.inf)]:
            value = getattr(self, name)
            _require(
                0 <= value <= limit,
                f"augment.repitch.{name} is {value}: it must be between 0 and {limit}.",
            )

    def output_length(self, length: int) -> int:
        """Samples that remain of `length`."""
        return int((1 - 0.01 * self.max_tempo) * length)

    def __call__(self, stems: Tensor, generator: Generator) -> Tensor:
        batch, sources = stems.shape[:2]
        chosen, pitch, tempo = self._draw(batch, sources, generator)
        length = self.output_length(stems.shape[-1])
        out = stems[..., :length].clone()
        voices = [source for source in range(sources) if source in self.vocals]
        others = [source for source in range(sources) if source not in self.vocals]
        for group, seconds in [(voices, VOICE_WINDOW), (others, MUSIC_WINDOW)]:
            where = [(example, source) for example in chosen for source in group]
            if where:
                changed = repitch(
                    torch.stack([stems[place] for place in where]).float(),
                    [pitch[example][source] for example, source in where],
                    [tempo[example][source] for example, source in where],
                    length=length,
                    window=_power_of_two(seconds * self.samplerate),
                )
                for place, row in zip(where, changed, strict=True):
                    out[place] = row
        return out

    def _draw(self, batch: int, sources: int, generator: Generator):
        """The examples to change, and semitones and percentages [example][source]."""
        generator, size = _of_host(generator), (batch, 1 if self.same else sources)
        chosen = torch.rand(batch, generator=generator) < self.proba
        pitch = torch.randint(-self.max_pitch, self.max_pitch + 1, size, generator=generator)
        tempo = self.tempo_std * torch.randn(size, generator=generator)
        tempo = tempo.clamp(-self.max_tempo, self.max_tempo)
        examples = chosen.nonzero().flatten().tolist()
        return (
            examples,
            pitch.expand(batch, sources).tolist(),
            tempo.expand(batch, sources).tolist(),
        )


def _of_host(generator: Generator) -> Generator:
    """`generator`, or where it is a GPU's, one of the host that follows from where it stands: the
    host would wait for draws of a GPU."""
    if generator.device.type == "cpu":
        return generator
    drawn = generator.get_offset() if generator.device.type == "cuda" else 0
    return Generator().manual_seed((generator.initial_seed() + drawn) % 2**63)


class Augmentation:
    """The chain of the published training: Repitch, Shift, FlipChannels, FlipSign, Scale, Remix.

    Arguments are the settings `augment.*`: `shift` in seconds, `flip` for channels and sign, and
    mappings with the arguments of Scale, Remix and Repitch; what has probability 0 is left out.
    `sources` tells which stem is the voice.
    """

    def __init__(  # noqa: PLR0913
        self,
        samplerate: int = 44100,
        *,
        shift: float = 1.0,
        shift_same: bool = False,
        flip: bool = True,
        scale: Mapping[str, Any] | None = None,
        remix: Mapping[str, Any] | None = None,
        repitch: Mapping[str, Any] | None = None,
        sources: Sequence[str] = ("drums", "bass", "other", "vocals"),
    ):
        vocals = tuple(index for index, source in enumerate(sources) if source == "vocals")
        derived = {"vocals": vocals, "samplerate": samplerate}
        self.repitch = _build(Repitch, "repitch", repitch, derived)
        self.shift = Shift(int(samplerate * shift), shift_same)
        self.scale = _build(Scale, "scale", scale)
        self.remix = _build(Remix, "remix", remix)
        pooled = self.remix.pool > 0 and self.remix.proba > 0
        self.pool = RemixPool(self.remix.pool, self.remix.proba) if pooled else None
        flips = [FlipChannels(), FlipSign()] if flip else []
        chain = [self.repitch, self.shift, *flips, self.scale, self.pool or self.remix]
        self.steps = [step for step in chain if getattr(step, "proba", 1) > 0]

    def __repr__(self) -> str:
        return f"Augmentation({', '.join(map(repr, self.steps))})"

    def check_batch(self, batch_size: int) -> None:
        """Raise ValueError if a batch of this size can't be remixed; ask before anything slow."""
        if self.remix in self.steps:
            self.remix.check_batch(batch_size)

    def output_length(self, length: int) -> int:
        """Samples that remain of an extract of `length` samples."""
        if self.repitch in self.steps:
            length = self.repitch.output_length(length)
        return length - self.shift.shift

    def __call__(self, stems: Tensor, generator: Generator) -> Tensor:
        for step in self.steps:
            stems = step(stems, generator)
        return stems


def _grid(stems: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (B, 1) and (1, S) of the examples and sources."""
    batch, sources = stems.shape[:2]
    rows = torch.arange(batch, device=stems.device)
    return rows[:, None], torch.arange(sources, device=stems.device)[None]


def _coin(stems: Tensor, generator: Generator) -> Tensor:
    """0 or 1 for each source: (B, S, 1, 1)."""
    return torch.randint(2, (*stems.shape[:2], 1, 1), generator=generator, device=stems.device)


def _happens(proba: float, generator: Generator) -> Tensor:
    """True with probability `proba`, decided on the device: the host need not wait for it."""
    return torch.rand((), generator=generator, device=generator.device) < proba


def _power_of_two(samples: float) -> int:
    return max(4, 2 ** round(math.log2(samples)))


def _build(kind: type, name: str, settings: Mapping[str, Any] | None, derived: Any = None):
    """An augmentation from the settings `augment.<name>`; what is `derived` is no setting."""
    derived, settings = derived or {}, settings or {}
    allowed = [field.name for field in fields(kind) if field.name not in derived]
    unknown = [key for key in settings if key not in allowed]
    _require(not unknown, f"augment.{name} has no {unknown}: it has {', '.join(allowed)}.")
    return kind(**settings, **derived)


def _require_proba(name: str, proba: float) -> None:
    _require(0 <= proba <= 1, f"augment.{name}.proba is {proba}: it must be between 0 and 1.")


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)
