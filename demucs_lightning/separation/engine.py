"""Separation of mixtures that are whole or arrive in blocks: one engine for both.

All runs of a separation, of each model and each shift, go side by side over the mixture. Whichever
is furthest behind takes the next batch of chunks; what all have passed is finished.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import torch
from torch import Generator, Tensor

from demucs_lightning.models import SeparationModel
from demucs_lightning.separation.bags import BagOfModels, Member, chosen, members
from demucs_lightning.separation.buffers import Incoming, Outgoing
from demucs_lightning.separation.chunks import Chunks, Fade, Pass
from demucs_lightning.separation.level import STANDARD, Level
from demucs_lightning.separation.memory import Sparing, fitting_batch

Progress = Callable[[float], object]

MAX_SHIFT = 0.5  # seconds
MOST_SHIFTS = 1000
SEEDS = (-(2**63), 2**64 - 1)  # of a generator
LONGEST = 24 * 3600  # seconds of a chunk


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a mixture is cut up and put together; `separate` says what each is."""

    segment: float | None = None
    overlap: float = 0.25
    shifts: int = 0
    batch_size: int | None = 1
    seed: int = 0
    stems: Sequence[str] | None = None

    def __post_init__(self) -> None:
        segment, overlap = self.segment, self.overlap
        if segment is not None and not (_is(Real, segment) and 0 < segment < math.inf):
            raise ValueError(f"segment is {segment!r}: it must be a number of seconds above 0.")
        if not (_is(Real, overlap) and 0 <= overlap < 1):
            raise ValueError(f"overlap is {overlap!r}: it must be at least 0 and below 1.")
        if not (_is(Integral, self.shifts) and 0 <= self.shifts <= MOST_SHIFTS):
            raise ValueError(f"shifts is {self.shifts!r}: it must be 0 to {MOST_SHIFTS}.")
        if self.batch_size is not None and not (
            _is(Integral, self.batch_size) and self.batch_size >= 1
        ):
            raise ValueError(f"batch_size is {self.batch_size!r}: it must be at least 1.")
        if not (_is(Integral, self.seed) and SEEDS[0] <= self.seed <= SEEDS[1]):
            raise ValueError(f"seed is {self.seed!r}: it must be a whole number of 64 bits.")


def _is(kind: Any, value: object) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def separate(  # noqa: PLR0913
    model: SeparationModel | BagOfModels,
    mixture: Tensor,
    *,
    segment: float | None = None,
    overlap: float = 0.25,
    shifts: int = 0,
    batch_size: int | None = 1,
    seed: int = 0,
    stems: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Separate a normalised mixture (B, C, T): (B, S, C, T), on the mixture's device.

    Chunks of `segment` seconds (None: the model's own) start every (1 - `overlap`) of a chunk;
    `batch_size` of them go through the model at once, on its device (None: as many as suit its
    memory). The mean of `shifts` random delays costs as many runs; they depend on `seed` only.
    Of a bag, the mean of its members is taken, and those that serve none of `stems` (None: all, in
    the model's order) never run. `progress` is called with the part that is done, up to exactly 1.

    Where a device runs out of memory, fewer chunks go at once, then shorter ones, with a warning.

    Raises ValueError for a setting out of its range, an unknown stem, or a mixture that is empty or
    not for this model.
    """
    settings = Settings(
        segment=segment,
        overlap=overlap,
        shifts=shifts,
        batch_size=batch_size,
        seed=seed,
        stems=stems,
    )
    shape, channels = tuple(mixture.shape), model.audio_channels
    if len(shape) != 3 or shape[1] != channels:
        raise ValueError(f"The mixture is {shape}: it must be (batch, {channels}, samples).")
    if is_one_piece(model, settings, shape[2]):
        settings = replace(settings, segment=shape[2] / model.samplerate + 2 * MAX_SHIFT, overlap=0)
    return _whole(_passes(model, settings, _sparing), mixture, progress)


def stream(  # noqa: PLR0913
    model: SeparationModel | BagOfModels,
    blocks: Iterable[Tensor],
    *,
    level: Level = STANDARD,
    length: int | None = None,
    segment: float | None = None,
    overlap: float = 0.25,
    shifts: int = 0,
    batch_size: int | None = 1,
    seed: int = 0,
    stems: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Iterator[Tensor]:
    """Separate a mixture that comes in blocks (C, t) of any length: blocks (S, C, t) of its stems.

    Together they are as long as the mixture, and the same as `separate` makes of it whole. What is
    held at a time is a few chunks, for each of a bag's members and `shifts`, however long the
    mixture; blocks are taken when they are needed, so the first stems come after about `batch_size`
    chunks. Blocks must not be changed once they were handed over.

    `level` is that of the whole mixture, as `statistics` finds it in a first reading; the models
    hear the mixture without it, and the stems have it again. Live, where the whole isn't known, it
    is a guess: the level of what was heard before, or of music like it.

    `length`, in samples, is for `progress` only, and may be a guess too; without it, only the end
    is told. All else is as in `separate`. Settings are checked at once, and blocks as they come: a
    ValueError says what is wrong.
    """
    settings = Settings(
        segment=segment,
        overlap=overlap,
        shifts=shifts,
        batch_size=batch_size,
        seed=seed,
        stems=stems,
    )
    passes = _passes(model, settings, _sparing)
    mixture = Incoming(_levelled(blocks, level, model.audio_channels))
    return _in_parts(passes, mixture, level, length or 0, progress)


def is_one_piece(model: Any, settings: Settings, length: int) -> bool:
    """Whether `length` samples fit into the first chunk of `segment` seconds, whatever their delay,
    and no other begins in them. Then a chunk just long enough gives the same for less memory,
    unless the model was trained on one length."""
    if settings.segment is None or math.isfinite(float(model.max_segment)):
        return False
    return (1 - settings.overlap) * settings.segment > length / model.samplerate + 2 * MAX_SHIFT


def _levelled(blocks: Iterable[Tensor], level: Level, channels: int) -> Iterator[Tensor]:
    for block in blocks:
        if block.ndim != 2 or len(block) != channels:
            raise ValueError(f"A block is {tuple(block.shape)}: it must be ({channels}, samples).")
        yield ((block - level.mean) / level.std)[None]


def _passes(
    model: SeparationModel | BagOfModels,
    settings: Settings,
    run: Callable[[SeparationModel], Callable[[Tensor], Tensor]],
) -> list[Pass]:
    """Every member with each of its delays, but for those that nobody needs."""
    wanted = [model.sources.index(name) for name in chosen(model, settings.stems)]
    every = members(model, settings.stems)
    # Drawn for all members, so that a member's delays don't depend on the stems.
    generator, shape = Generator().manual_seed(settings.seed), (len(every), settings.shifts)
    most = int(MAX_SHIFT * model.samplerate)
    delays = torch.randint(most + 1, shape, generator=generator).tolist()
    passes = []
    for member, drawn in zip(every, delays, strict=True):
        chunk = _chunk(member.model, settings.segment)
        if any(member.shares):
            chunks = Chunks(member.model, chunk, stems=wanted, run=run(member.model))
            passes += _passes_of(member, chunks, drawn or [0], settings)
    return passes


def _passes_of(
    member: Member, chunks: Chunks, delays: Sequence[int], settings: Settings
) -> list[Pass]:
    stride = max(1, int((1 - settings.overlap) * chunks.length))
    fade = Fade(chunks.length, stride)
    batch_size = settings.batch_size or fitting_batch(member.model, chunks.length)
    shares = [share / len(delays) for share in member.shares]
    return [
        Pass(chunks, fade, stride=stride, batch_size=batch_size, delay=delay, shares=shares)
        for delay in delays
    ]


def _chunk(model: SeparationModel, segment: float | None) -> int:
    """The samples of a chunk of `segment` seconds; raises ValueError if the model can't take it."""
    if segment is not None and segment > float(model.max_segment):
        raise ValueError(
            f"segment is {segment}: {type(model).__name__} takes chunks of at most "
            f"{float(model.max_segment):g} seconds, as long as it was trained on."
        )
    if segment is not None and segment > LONGEST:
        raise ValueError(f"segment is {segment}: chunks of at most {LONGEST:g} seconds can be.")
    chunk = int(model.samplerate * (model.segment if segment is None else segment))
    if chunk < 1:
        raise ValueError(f"segment is {segment}: that is less than a sample.")
    return chunk


def _whole(passes: Sequence[Pass], mixture: Tensor, progress: Progress | None = None) -> Tensor:
    length = mixture.shape[-1]
    stems = Outgoing(room=length)
    for _ in _steps(passes, Incoming([mixture]), stems, length, progress):
        pass
    return stems.take(length)


def _in_parts(
    passes: Sequence[Pass],
    mixture: Incoming,
    level: Level,
    length: int,
    progress: Progress | None,
) -> Iterator[Tensor]:
    stems = Outgoing()
    for end in _steps(passes, mixture, stems, length, progress):
        if end > stems.begin:
            yield stems.take(end)[0] * level.std + level.mean


def _steps(
    passes: Sequence[Pass],
    mixture: Incoming,
    stems: Outgoing,
    length: int,
    progress: Progress | None,
) -> Iterator[int]:
    """Batch after batch of chunks, added to the stems; up to where these are finished now."""
    if not mixture.reach(1):
        raise ValueError("The mixture is empty: there is nothing to separate.")
    told = 0.0
    while mixture.reach((behind := min(passes, key=lambda each: each.at)).at + 1):
        with torch.no_grad():
            behind.advance(mixture, stems)
        mixture.forget(min(each.needs for each in passes))
        part = _part(passes, mixture.end if mixture.over else max(length, mixture.end))
        if progress is not None and length and told < part < 1:
            progress(part)
            told = part
        yield min(mixture.end, *(each.at for each in passes))
    if progress is not None:
        progress(1.0)


def _part(passes: Sequence[Pass], length: int) -> float:
    """What is done of a mixture of this length, and not more than is there."""
    parts = [min(1.0, (each.at - each.start) / (length - each.start)) for each in passes]
    return sum(parts) / len(parts)


def _sparing(model: SeparationModel) -> Sparing:
    return Sparing(model, _in_its_chunks)


def _in_its_chunks(model: SeparationModel, mixture: Tensor) -> Tensor:
    """The mixture separated at the model's own segment, with nothing held back for a failure."""
    return _whole(_passes(model, Settings(), lambda plain: plain), mixture)
