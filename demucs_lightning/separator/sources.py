"""Recordings that are read block by block, from a file or from memory, as often as it takes."""

import math
from collections.abc import Iterator
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from demucs_lightning import audio
from demucs_lightning.audio.form import MAX_CHANNELS, RATES, fault_in
from demucs_lightning.separation import Level, statistics

INTEGERS = {torch.int16: 2**15, torch.int32: 2**31}


class Source(Protocol):
    """Iterating gives the recording from its start, in finite blocks (C, t) float32."""

    samplerate: int
    channels: int

    def __iter__(self) -> Iterator[Tensor]: ...


class Recording:
    """Samples in memory: (C, T) or (T,), floating point with full scale at 1, int16 or int32.

    Raises ValueError for another shape or type, no sample, and for what no sound has: NaN, infinity
    and values above audio.form.LOUDEST.
    """

    def __init__(self, samples: Tensor | np.ndarray, samplerate: int) -> None:
        given = tensor_of(samples)
        if given.ndim not in (1, 2) or not given.numel():
            raise ValueError(
                f"The mixture is {tuple(given.shape)}: it must be (channels, samples), with a "
                "sample at least."
            )
        self.samplerate = checked_rate(samplerate)
        self._samples = given[None] if given.ndim == 1 else given
        self.channels = len(self._samples)
        if self.channels > MAX_CHANNELS:
            raise ValueError(
                f"The mixture has {self.channels} channels: it must be (channels, samples), so "
                "(samples, channels) is to be transposed."
            )
        scaled(given[:0])

    def __iter__(self) -> Iterator[Tensor]:
        for number, block in enumerate(self._samples.split(audio.BLOCK, dim=-1)):
            second = number * audio.BLOCK / self.samplerate
            yield checked(scaled(block), second, self.samplerate)


def checked_rate(samplerate: Any, name: str = "samplerate") -> int:
    """The rate as a whole number of Hz; ValueError, naming ``name``, where it is none of audio."""
    rate = 0
    if isinstance(samplerate, Real) and math.isfinite(samplerate):
        rate = int(float(samplerate))
    if rate != samplerate or not RATES[0] <= rate <= RATES[1]:
        raise ValueError(
            f"{name} is {samplerate!r}: a whole number of Hz, {RATES[0]} to {RATES[1]}, can be."
        )
    return rate


def tensor_of(samples: Any) -> Tensor:
    """Samples as a tensor, which shares their memory where it can; ValueError for none that are
    numbers."""
    if isinstance(samples, np.ndarray):
        samples = samples.astype(samples.dtype.newbyteorder("="), copy=False)
        if any(stride < 0 for stride in samples.strides):
            samples = samples.copy()
    try:
        return torch.as_tensor(samples).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        kind = getattr(samples, "dtype", type(samples).__name__)
        raise ValueError(f"The mixture is {kind}: floats, int16 or int32 can be.") from error


def scaled(samples: Tensor) -> Tensor:
    """Samples as float32 on the CPU with full scale at 1; ValueError for a type that has none."""
    samples, scale = samples.cpu(), INTEGERS.get(samples.dtype)
    if scale is None and not samples.dtype.is_floating_point:
        raise ValueError(f"The mixture is {samples.dtype}: floats, int16 or int32 can be.")
    return samples.float() if scale is None else (samples.double() / scale).float()


def checked(block: Tensor, second: float, samplerate: int) -> Tensor:
    """The block (C, t), which starts at that second; ValueError where it is no sound."""
    if fault := fault_in(block):
        at = second + fault[0] / samplerate
        raise ValueError(f"The mixture holds {fault[1]} at second {at:.3f}.")
    return block


def opened(source: Any, samplerate: int | None, own: int) -> Source:
    """A file by its path, or samples at `samplerate`; at the model's ``own`` rate if it is None."""
    if not isinstance(source, str | Path):
        if not isinstance(source, Tensor | np.ndarray):
            kind = type(source).__name__
            raise ValueError(f"The mixture is a {kind}: a path, an array or a tensor can be.")
        return Recording(source, own if samplerate is None else samplerate)
    if samplerate is not None:
        raise ValueError(f"{source} knows its rate itself: leave samplerate out.")
    return audio.stream(source)


class Survey(NamedTuple):
    """What is known of a recording after a first reading: its length in samples, the highest
    absolute value, and the level of each group of channels, at the model's rate."""

    frames: int
    peak: float
    levels: list[Level]


def groups(channels: int, width: int) -> list[slice]:
    """Channels that a model of ``width`` hears together: the first ones, the next, and so on."""
    return [slice(start, start + width) for start in range(0, channels, width)]


def survey(source: Source, samplerate: int, width: int) -> Survey:
    """Read a recording once for each group of channels; it must have a sample."""
    frames, peak = 0, 0.0

    def noted() -> Iterator[Tensor]:
        nonlocal frames, peak
        frames = 0
        for block in source:
            frames += block.shape[-1]
            peak = max(peak, block.abs().max().item() if block.numel() else 0.0)
            yield block

    levels = [
        statistics(heard(noted(), group, source.samplerate, samplerate, width))
        for group in groups(source.channels, width)
    ]
    return Survey(frames, peak, levels)


def heard(
    blocks: Iterator[Tensor], group: slice, old: int, new: int, width: int
) -> Iterator[Tensor]:
    """The blocks (C, t) as a model hears a group of their channels: (``width``, t) at ``new`` Hz.

    A channel that is alone in its group is given to the model in all of its channels.
    """
    resampler, done = None, 0
    for block in blocks:
        block = block[group]
        resampler = resampler or audio.Resampler(len(block), old=old, new=new)
        converted = audio.convert_channels(_filled(resampler(block), width), width)
        done += converted.shape[-1]
        yield converted
    if resampler is None or old == new:
        return
    rest = audio.convert_channels(_filled(resampler.flush(), width), width)
    # A sample or two at a higher rate are not nothing.
    yield rest if done + rest.shape[-1] else torch.zeros(width, 1)


def _filled(block: Tensor, width: int) -> Tensor:
    """With silent channels where there are several, and still too few."""
    if 1 < len(block) < width:
        return torch.cat([block, block.new_zeros(width - len(block), block.shape[-1])])
    return block


def resized_length(frames: int, old: int, new: int) -> int:
    """The length at another rate; what has a sample has one there too."""
    return max(1, audio.resampled_length(frames, old=old, new=new)) if frames else 0
