"""From blocks of a recording to blocks of its stems, at the rate and with the channels it has.

Blocks go through: to the model's rate and channels, through the models, back again, and cut to the
length that they must have in all. Nothing is held but a few chunks of the model's.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from demucs_lightning import audio
from demucs_lightning.allocator import kept
from demucs_lightning.audio.decoding import resized
from demucs_lightning.separation import Level, fetched, sent, stream
from demucs_lightning.separator.background import ahead, following
from demucs_lightning.separator.hardware import Computing
from demucs_lightning.separator.sources import groups, heard


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A model that is where it computes, and the settings of `separation.stream`."""

    model: Any
    device: torch.device
    computing: Computing
    settings: dict[str, Any]

    def asked(self, **settings: Any) -> "Engine":
        """The same with other settings."""
        return replace(self, settings={**self.settings, **settings})

    def stems(self, blocks: Iterable[Tensor], level: Level, *, behind: int = 0) -> Iterator[Tensor]:
        """Blocks (S, C, t) of the stems, on the CPU, of blocks (C, t) of the model's kind. Up to
        ``behind`` of them are held back while a GPU computes the next."""
        for block in fetched(self._computed(sent(blocks, self.device), level), behind=behind):
            if not block.sum().isfinite():  # one pass, and no mask
                raise ValueError(
                    "The model gave NaN or infinite values: its weights are damaged, or its "
                    "precision is too low; try precision fp32."
                )
            yield block

    def _computed(self, blocks: Iterable[Tensor], level: Level) -> Iterator[Tensor]:
        with kept() if self.device.type == "cpu" else nullcontext():
            with self.computing():
                stems = stream(self.model, blocks, level=level, **self.settings)
            while True:
                with self.computing():  # and not while the caller has the block
                    block = next(stems, None)
                if block is None:
                    return
                yield block


@dataclass(frozen=True)
class Form:
    """What a stream of samples is like: its rate in Hz, and its channels."""

    samplerate: int
    channels: int


def separated(
    blocks: Iterable[Tensor],
    form: Form,
    engine: Engine,
    *,
    levels: Sequence[Level],
    depth: int = 0,
) -> Iterator[Tensor]:
    """Blocks (S, C, t) of the stems of blocks (C, t) of a recording of this ``form``, at the
    model's rate.

    C is the recording's; groups of as many channels as the model has are separated each by itself,
    at its level of ``levels``. Up to ``depth`` blocks are converted for the model ahead of it, in a
    thread.
    """
    model = engine.model
    width = model.audio_channels
    every = groups(form.channels, width)
    # In step with one another, so that little is held for the others.
    copies = itertools.tee(blocks, len(every))
    each = []
    for number, (group, copy) in enumerate(zip(every, copies, strict=True)):
        own = engine if number == 0 else engine.asked(progress=None)
        size = min(width, form.channels - group.start)
        blocks = heard(copy, group, form.samplerate, model.samplerate, width)
        if depth and len(every) == 1:  # several read the same blocks, and from one thread
            blocks = ahead(blocks, depth)
        stems = own.stems(blocks, levels[number], behind=1 if depth else 0)
        each.append(_narrowed(stems, size))
    return (torch.cat(parts, dim=1) for parts in zip(*each, strict=True))


def _narrowed(stems: Iterator[Tensor], channels: int) -> Iterator[Tensor]:
    """One channel is the mean of all that the model was given it in, several are the first ones."""
    for block in stems:
        yield block.mean(dim=1, keepdim=True) if channels == 1 else block[:, :channels]


def converted(
    stems: Iterable[Tensor], old: int, new: int, *, length: Callable[[], int], depth: int = 0
) -> Iterator[Tensor]:
    """Blocks (S, C, t) at another rate, in Hz: ``length()`` samples so far, and in all when they
    are over. A thread makes them, up to ``depth`` blocks behind those that come; 0: at once."""
    if old == new:
        return fitted(stems, length)
    convert = Conversion(old, new)
    made = following(stems, convert, depth) if depth else map(convert, stems)
    return fitted(itertools.chain(made, convert.rest()), length)


class Conversion:
    """Called with one block (S, C, t) after the other, gives them at another rate."""

    def __init__(self, old: int, new: int) -> None:
        self._rates, self._shape = {"old": old, "new": new}, (0, 0)
        self._resampler: audio.Resampler | None = None

    def __call__(self, block: Tensor) -> Tensor:
        if self._resampler is None:
            self._shape = block.shape[0], block.shape[1]
            self._resampler = audio.Resampler(block.shape[0] * block.shape[1], **self._rates)
        return self._resampler(block.flatten(0, 1)).unflatten(0, self._shape)

    def rest(self) -> Iterator[Tensor]:
        """What is left when the blocks are over, which begins when it is asked for."""
        if self._resampler is not None:
            yield self._resampler.flush().unflatten(0, self._shape)


def fitted(blocks: Iterable[Tensor], length: Callable[[], int]) -> Iterator[Tensor]:
    """Blocks (..., t) that are ``length()`` samples in all: what is beyond goes, and what lacks is
    silence. Rates that are converted forth and back may make a sample more or less."""
    done, shape = 0, ()
    for block in blocks:
        shape = block.shape[:-1]
        block = block[..., : length() - done]
        done += block.shape[-1]
        if block.shape[-1]:
            yield block
    if shape and done < length():
        yield torch.zeros(*shape, length() - done)


def even(stems: Iterable[Tensor], size: int = audio.BLOCK) -> Iterator[Tensor]:
    """The blocks (S, C, t) cut anew, with t = ``size`` but for the last."""
    stems = iter(stems)
    first = next(stems, None)
    if first is None:
        return
    shape = first.shape[:2]
    flat = (block.flatten(0, 1) for block in itertools.chain([first], stems))
    for block in resized(flat, size):
        yield block.unflatten(0, shape)


def mixture(blocks: Iterable[Tensor], form: Form, rate: int, length: int) -> Iterator[Tensor]:
    """A recording at another rate, in blocks as `even` cuts those of the stems."""
    stems = (block[None] for block in blocks)
    for block in even(converted(stems, form.samplerate, rate, length=lambda: length)):
        yield block[0]


def silence(stems: int, channels: int, length: int) -> Iterator[Tensor]:
    """Stems of silence, as `even` cuts them."""
    for start in range(0, length, audio.BLOCK):
        yield torch.zeros(stems, channels, min(audio.BLOCK, length - start))
