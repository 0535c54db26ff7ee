"""From blocks of a recording to blocks of its stems, at the rate and with the channels it has.

Blocks go through: to the model's rate and channels, through the models, back again, and cut to the
length that they must have in all. Nothing is held but a few chunks of the model's.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from demucs_lightning import audio
from demucs_lightning.audio.decoding import resized
from demucs_lightning.separation import Level, stream
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

    def stems(self, blocks: Iterable[Tensor], level: Level) -> Iterator[Tensor]:
        """Blocks (S, C, t) of the stems, on the CPU, of blocks (C, t) of the model's kind."""
        moved = (block.to(self.device) for block in blocks)
        with self.computing():
            stems = stream(self.model, moved, level=level, **self.settings)
        while True:
            with self.computing():  # and not while the caller has the block
                block = next(stems, None)
            if block is None:
                return
            block = block.float().cpu()
            if not block.sum().isfinite():  # one pass, and no mask
                raise ValueError(
                    "The model gave NaN or infinite values: its weights are damaged, or its "
                    "precision is too low; try precision fp32."
                )
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
    rate: int,
    length: Callable[[], int],
) -> Iterator[Tensor]:
    """Blocks (S, C, t) of the stems of blocks (C, t) of a recording of this ``form``.

    C is the recording's; groups of as many channels as the model has are separated each by itself,
    at its level of ``levels``. ``rate`` is that of the stems, in Hz, and ``length`` says how many
    samples of them there may be so far, and in all when the blocks are over.
    """
    model = engine.model
    old, new, width = form.samplerate, model.samplerate, model.audio_channels
    every = groups(form.channels, width)
    # In step with one another, so that little is held for the others.
    copies = itertools.tee(blocks, len(every))
    each = []
    for number, (group, copy) in enumerate(zip(every, copies, strict=True)):
        own = engine if number == 0 else engine.asked(progress=None)
        size = min(width, form.channels - group.start)
        stems = own.stems(heard(copy, group, old, new, width), levels[number])
        each.append(_narrowed(stems, size))
    joined = (torch.cat(parts, dim=1) for parts in zip(*each, strict=True))
    return fitted(_converted(joined, new, rate), length)


def _narrowed(stems: Iterator[Tensor], channels: int) -> Iterator[Tensor]:
    """One channel is the mean of all that the model was given it in, several are the first ones."""
    for block in stems:
        yield block.mean(dim=1, keepdim=True) if channels == 1 else block[:, :channels]


def _converted(stems: Iterable[Tensor], old: int, new: int) -> Iterator[Tensor]:
    if old == new:
        yield from stems
        return
    resampler, shape = None, (0, 0)
    for block in stems:
        shape = block.shape[0], block.shape[1]
        resampler = resampler or audio.Resampler(shape[0] * shape[1], old=old, new=new)
        yield resampler(block.flatten(0, 1)).unflatten(0, shape)
    if resampler is not None:
        yield resampler.flush().unflatten(0, shape)


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
    for block in even(fitted(_converted(stems, form.samplerate, rate), lambda: length)):
        yield block[0]


def silence(stems: int, channels: int, length: int) -> Iterator[Tensor]:
    """Stems of silence, as `even` cuts them."""
    for start in range(0, length, audio.BLOCK):
        yield torch.zeros(stems, channels, min(audio.BLOCK, length - start))
