"""Separation of a recording while it is made."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from torch import Tensor

from demucs_lightning.separation import Level, statistics
from demucs_lightning.separator.flow import Engine, Form, converted, separated
from demucs_lightning.separator.sources import checked, groups, heard, scaled, tensor_of

QUIETEST = 0.01  # deviation: a recording may begin with silence, which is no level


def live(
    engine: Engine, blocks: Iterable[Tensor | np.ndarray], samplerate: int, level: Level | None
) -> Iterator[dict[str, Tensor]]:
    """What `Separator.stream` gives."""
    incoming = Incoming(blocks, samplerate)
    begin = incoming.take(1 if level else _chunk(engine) * samplerate)
    if not incoming.frames:
        raise ValueError("The mixture is empty: there is nothing to separate.")
    form = Form(samplerate, len(begin[0]))
    levels = [level or found for found in _levels(begin, form, engine)]
    parts = separated(itertools.chain(_passed_on(begin), incoming), form, engine, levels=levels)
    old = engine.model.samplerate
    for block in converted(parts, old, samplerate, length=lambda: incoming.frames):
        yield dict(zip(engine.settings["stems"], block, strict=True))


class Incoming:
    """Iterates over blocks that come, which must be alike and finite, and counts their samples."""

    def __init__(self, blocks: Iterable[Tensor | np.ndarray], samplerate: int) -> None:
        self._blocks, self._samplerate, self._channels = iter(blocks), samplerate, 0
        self.frames = 0

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        block = scaled(tensor_of(next(self._blocks)))
        if block.ndim != 2 or len(block) != (self._channels or len(block)) or not len(block):
            raise ValueError(
                f"A block is {tuple(block.shape)}: all must be (channels, samples), and have the "
                "same channels."
            )
        self._channels = len(block)
        checked(block, self.frames / self._samplerate, self._samplerate)
        self.frames += block.shape[-1]
        return block

    def take(self, frames: float) -> list[Tensor]:
        """The next blocks, until there are so many samples or no more."""
        taken = []
        while self.frames < frames and (block := next(self, None)) is not None:
            taken.append(block)
        return taken


def _chunk(engine: Engine) -> float:
    """Seconds of the longest chunk that the model takes: nothing comes out before."""
    members = getattr(engine.model, "models", [engine.model])
    return engine.settings["segment"] or max(float(member.segment) for member in members)


def _levels(blocks: list[Tensor], form: Form, engine: Engine) -> list[Level]:
    rate, width = engine.model.samplerate, engine.model.audio_channels
    levels = []
    for group in groups(form.channels, width):
        found = statistics(heard(iter(blocks), group, form.samplerate, rate, width))
        levels.append(Level(found.mean, max(found.std, QUIETEST)))
    return levels


def _passed_on(blocks: list[Tensor]) -> Iterator[Tensor]:
    while blocks:
        yield blocks.pop(0)
