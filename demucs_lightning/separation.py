"""From a mixture to its stems with a model that sees a few seconds; tensors in, tensors out.

Small functions of one type, (B, C, T) → (B, S, C, T), put around each other:

    normalized(shifted(overlap_add(padded(model))))

`separate` composes the inner three; put `normalized` around it for audio at its natural level.
Whether the model is in eval mode is the caller's choice. Results equal those of demucs 4
(`apply_model`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Protocol

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from demucs_lightning.models import SeparationModel

Separation = Callable[[Tensor], Tensor]
Progress = Callable[[float], object]

MAX_SHIFT = 0.5  # seconds


class ChunkSeparation(Protocol):
    """A separation that can also be asked for chunks of the mixture; see `padded`."""

    def __call__(
        self, mixture: Tensor, offsets: Sequence[int] = (0,), length: int | None = None
    ) -> Tensor:
        """Stems (O * B, S, C, length) of the chunks that start at `offsets`, chunk by chunk."""
        ...


def separate(  # noqa: PLR0913
    model: SeparationModel,
    mixture: Tensor,
    *,
    segment: float | None = None,
    overlap: float = 0.25,
    shifts: int = 0,
    batch_size: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Separate a normalised mixture (B, C, T) with a model of this package: (B, S, C, T).

    Chunks of `segment` seconds (None: the model's own) start every (1 - `overlap`) of a chunk;
    `batch_size` of them go through the model at once, on its device, and all else stays on the
    mixture's. The mean of `shifts` random delays costs as many runs; they depend on `seed` only.
    `progress` is called with the part that is done, up to exactly 1.

    Raises ValueError for a setting out of its range, or a mixture that is empty or not for this
    model.
    """
    segment = model.segment if segment is None else segment
    _require(math.isfinite(segment), f"segment is {segment}: it must be a number of seconds.")
    shape, channels = tuple(mixture.shape), model.audio_channels
    fits = len(shape) == 3 and shape[1] == channels
    _require(fits, f"The mixture is {shape}: it must be (batch, {channels}, samples).")
    chunked = overlap_add(
        padded(model),
        chunk=int(model.samplerate * segment),
        overlap=overlap,
        batch_size=batch_size,
        progress=None if progress is None else _over_passes(progress, max(1, shifts)),
    )
    separation = shifted(
        chunked,
        shifts=shifts,
        max_shift=int(MAX_SHIFT * model.samplerate),
        generator=Generator().manual_seed(seed),
    )
    with torch.no_grad():
        return separation(mixture)


def padded(model: SeparationModel) -> ChunkSeparation:
    """Run the model on chunks, each widened to a length that suits the model.

    The margins are the audio around a chunk, and zeros only beyond the ends of the mixture. All
    chunks of a call make one batch, on the model's device and in its precision.
    """

    def separation(
        mixture: Tensor, offsets: Sequence[int] = (0,), length: int | None = None
    ) -> Tensor:
        length = mixture.shape[-1] if length is None else length
        valid = model.valid_length(length)
        margin = (valid - length) // 2  # an odd sample goes to the right
        chunks = torch.cat([_window(mixture, offset - margin, valid) for offset in offsets])
        estimates = model(chunks.to(_like(model, mixture)))
        return estimates[..., margin : margin + length].to(mixture)

    return separation


def overlap_add(
    fn: ChunkSeparation,
    *,
    chunk: int,
    overlap: float = 0.25,
    batch_size: int = 1,
    progress: Progress | None = None,
) -> Separation:
    """Separate chunks of `chunk` samples and cross-fade them, weighted by a triangle.

    The weights are divided by their sum, so every sample of the mixture counts once.
    """
    _require(chunk >= 1, f"segment makes chunks of {chunk} samples: it must be at least one long.")
    _require(0 <= overlap < 1, f"overlap is {overlap}: it must be at least 0 and below 1.")
    _require(batch_size >= 1, f"batch_size is {batch_size}: it must be at least 1.")
    stride = max(1, int((1 - overlap) * chunk))
    triangle = _triangle(chunk)

    def separation(mixture: Tensor) -> Tensor:
        batch, length = len(mixture), mixture.shape[-1]
        _require(length > 0, "The mixture is empty: there is nothing to separate.")
        weight, weights = triangle.to(mixture), mixture.new_zeros(length)
        sums = mixture.new_zeros(0)
        for offsets, size in chunk_batches(length, chunk, stride, batch_size):
            estimates = fn(mixture, offsets, size)
            if not len(sums):
                sums = mixture.new_zeros(batch, *estimates.shape[1:-1], length)
            for offset, estimate in zip(offsets, estimates.split(batch), strict=True):
                here = slice(offset, offset + size)
                sums[..., here] += weight[:size] * estimate
                weights[here] += weight[:size]
            if progress is not None:
                progress(min(1.0, (offsets[-1] + stride) / length))
        return sums.div_(weights)

    return separation


def chunk_batches(
    length: int, chunk: int, stride: int, batch_size: int
) -> Iterator[tuple[list[int], int]]:
    """Offsets of up to `batch_size` chunks of one size, and that size, from the start to the end.

    The last chunks are cut at the end. They go alone: a model widens each size in its own way.
    """
    for size, group in groupby(range(0, length, stride), lambda at: min(chunk, length - at)):
        offsets = list(group)
        for first in range(0, len(offsets), batch_size):
            yield offsets[first : first + batch_size], size


def shifted(fn: Separation, *, shifts: int, max_shift: int, generator: Generator) -> Separation:
    """Average `shifts` runs, each after 0 to `max_shift` samples of silence that are cut off again.

    With `shifts` 0, a single run without delay.
    """
    _require(shifts >= 0, f"shifts is {shifts}: it must be 0 or more.")
    if shifts == 0:
        return fn

    def separation(mixture: Tensor) -> Tensor:
        device = generator.device
        delays = torch.randint(max_shift + 1, (shifts,), generator=generator, device=device)
        runs = (fn(F.pad(mixture, (delay, 0)))[..., delay:] for delay in delays.tolist())
        return sum(runs, start=next(runs)) / shifts

    return separation


def normalized(fn: Separation) -> Separation:
    """Give `fn` the mixture at mean 0 and deviation 1 of its mono sum, and undo that after.

    Each item of a batch has its own. The mean returns to every stem, as in demucs 4.
    """

    def separation(mixture: Tensor) -> Tensor:
        mono = mixture.mean(dim=1, keepdim=True)
        mean = mono.mean(dim=-1, keepdim=True)
        std = mono.std(dim=-1, keepdim=True, correction=min(1, mixture.shape[-1] - 1)) + 1e-8
        return fn((mixture - mean) / std) * std[:, None] + mean[:, None]

    return separation


def _like(model: SeparationModel, mixture: Tensor) -> Tensor:
    """A tensor on the device of the model and in its precision."""
    weights = model.parameters() if isinstance(model, nn.Module) else ()
    return next(iter(weights), mixture)


def _window(mixture: Tensor, start: int, length: int) -> Tensor:
    """`length` samples of mixture (..., T) from `start`, which may be negative; zeros outside."""
    end = start + length
    inside = mixture[..., max(0, start) : end]
    return F.pad(inside, (max(0, -start), max(0, end - mixture.shape[-1])))


def _triangle(length: int) -> Tensor:
    """Weights that rise to 1 in the middle of a chunk, and are positive everywhere."""
    rise = torch.arange(1, length + 1)
    return torch.minimum(rise, rise.flip(0)) / ((length + 1) // 2)


def _over_passes(progress: Progress, passes: int) -> Progress:
    """One progress from 0 to 1 over several passes that each report up to exactly 1."""
    finished = 0

    def report(part: float) -> None:
        nonlocal finished
        progress((finished + part) / passes)
        finished += part == 1

    return report


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)
