"""Chunks of a mixture through a model, and how they cross-fade.

A chunk is cut out with the audio around it, goes through the model, and adds up with its neighbours
under a triangle. The results are those of demucs 4 (`apply_model`).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from demucs_lightning.models import SeparationModel
from demucs_lightning.separation.buffers import Incoming, Outgoing


class Chunks:
    """How a model is given chunks of up to ``length`` samples, each widened to what suits it.

    The margins are the audio around a chunk, and zeros only beyond the ends of the mixture.
    ``run`` stands for the call of the model, and ``stems`` are the indices of those wanted.
    """

    def __init__(
        self,
        model: SeparationModel,
        length: int,
        *,
        stems: Sequence[int] | None = None,
        run: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.model, self.length, self.run = model, length, run or model
        every = list(range(len(model.sources)))
        self.stems = None if stems is None or list(stems) == every else list(stems)

    def widened(self, size: int) -> int:
        """Samples that the model is given for a chunk of ``size``; never fewer for a longer one."""
        # Matches demucs 4: where training set the length, the last chunk is as long as others.
        if math.isfinite(self.model.max_segment):
            return self.length
        return self.model.valid_length(size)

    def margin(self, size: int) -> int:
        """Samples before a chunk that the model is given; if the sum is odd, one more follows."""
        return (self.widened(size) - size) // 2

    def separate(self, mixture: Incoming, offsets: Sequence[int], size: int) -> tuple[Tensor, ...]:
        """Stems (B, S, C, size) of the chunks at ``offsets``, which are one batch for the model.

        They go to the model's device and precision, but never below fp32, which is for what lies
        between a model's STFT and the inverse, and come back to the mixture's.
        """
        margin, length = self.margin(size), self.widened(size)
        windows = torch.cat([mixture.window(offset - margin, length) for offset in offsets])
        estimates = self.run(_brought(windows, self.model))
        if self.stems is not None:
            estimates = estimates[:, self.stems]
        return estimates[..., margin : margin + size].to(windows).chunk(len(offsets))


class Fade:
    """Weights of chunks of ``chunk`` samples, one every ``stride``: triangles that sum up to 1."""

    def __init__(self, chunk: int, stride: int) -> None:
        rise = torch.arange(1, chunk + 1)
        self.triangle = torch.minimum(rise, rise.flip(0)) / ((chunk + 1) // 2)
        self.stride, self.neighbours = stride, (chunk - 1) // stride
        # Only the first chunks lack neighbours before them; at the end, a mixture just stops.
        self.totals = torch.zeros(self.neighbours * stride + chunk)
        for start in range(0, len(self.totals), stride):
            part = self.totals[start : start + chunk]
            part += self.triangle[: len(part)]

    def weights(self, number: int, like: Tensor) -> Tensor:
        """The first weights of a chunk, the last dimension of ``like``, by the chunk's number."""
        self.triangle, self.totals = self.triangle.to(like), self.totals.to(like)
        start, size = min(number, self.neighbours) * self.stride, like.shape[-1]
        return self.triangle[:size] / self.totals[start : start + size]


class Pass:
    """One run of a model over a mixture, chunk after chunk, from ``-delay`` to the end.

    A delay is silence before the mixture: it moves the chunks against it. Estimates count
    ``shares`` (S,) in the sum of all passes.
    """

    def __init__(
        self,
        chunks: Chunks,
        fade: Fade,
        *,
        stride: int,
        batch_size: int = 1,
        delay: int = 0,
        shares: Sequence[float],
    ) -> None:
        self.chunks, self.fade, self.stride, self.batch_size = chunks, fade, stride, batch_size
        self.shares = torch.tensor(shares)[:, None, None]
        self.start = self.at = -delay  # `at` is where the next chunk begins

    @property
    def needs(self) -> int:
        """From where on the mixture is still needed."""
        # No shorter chunk is widened to more, so this is more than its margin.
        return self.at - self.chunks.widened(self.chunks.length) // 2

    def advance(self, mixture: Incoming, stems: Outgoing) -> None:
        """Add the next batch of chunks to the stems; there must be mixture left at ``at``."""
        offsets, size = self._next(mixture)
        estimates = self.chunks.separate(mixture, offsets, size)
        stems.add(
            [
                (offset, estimate, self._weights(offset, estimate))
                for offset, estimate in zip(offsets, estimates, strict=True)
            ]
        )
        self.at = offsets[-1] + self.stride

    def _weights(self, offset: int, estimate: Tensor) -> Tensor:
        weights = self.fade.weights((offset - self.start) // self.stride, estimate)
        self.shares = self.shares.to(weights)
        return self.shares * weights

    def _next(self, mixture: Incoming) -> tuple[list[int], int]:
        """Offsets and size of up to `batch_size` chunks, which are whole.

        Those that the end cuts go alone: a model widens each size in its own way.
        """
        chunk = self.chunks.length
        offsets = [self.at + self.stride * number for number in range(self.batch_size)]
        margins = self.chunks.widened(chunk) - chunk
        mixture.reach(offsets[-1] + chunk + margins - self.chunks.margin(chunk))
        whole = [offset for offset in offsets if mixture.reach(offset + chunk)]
        return (whole, chunk) if whole else ([self.at], mixture.end - self.at)


def _brought(windows: Tensor, model: SeparationModel) -> Tensor:
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    weights = next(iter(parameters), windows)
    return windows.to(weights.device, torch.promote_types(weights.dtype, torch.float32))
