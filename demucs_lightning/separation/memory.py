"""As many chunks at a time as the memory of a device holds, and what to do when it is short."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from demucs_lightning.separation.bags import at_segment
from demucs_lightning.separation.devices import Replicas
from demucs_lightning.separation.recorded import Recorded, plain

log = logging.getLogger(__name__)

MOST_SECONDS = 120  # of audio in a batch: a device has enough to do, and the host holds as much
TOGETHER_SECONDS = 20  # of audio that a CPU takes at once for the sake of an LSTM
SPARE = 0.8  # share of the free memory that is used
SHORTEST = 1.0  # seconds of a chunk below which less memory is no longer tried
# What torch writes where memory ran out: of the machine, or of a GPU in one of its libraries.
FULL = ("DefaultCPUAllocator: ", "ALLOC_FAILED", "CUDA error: out of memory")


def is_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or, which has no exception of its own, of the machine."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in FULL)
    return isinstance(error, torch.OutOfMemoryError) or said


class Need(NamedTuple):
    """Bytes that a run takes beside the weights, and those that are there for it."""

    used: int
    free: int


def fitting_batch(
    model: Any, chunk: int, *, measure: Callable[[Any, int], Need | None] | None = None
) -> int:
    """How many chunks of ``chunk`` samples go through the model at once.

    On a CUDA device, those that the free memory holds by what one chunk takes, and at most two
    minutes of audio; on all others one, or two that are short where an LSTM gains by it. For
    `Replicas`, all of them together. ``measure(model, chunk)`` says what one chunk takes; None
    means that it can't be known.
    """
    if isinstance(model, Recorded):
        return model.recordings.fitting(
            chunk, lambda: fitting_batch(model.network, chunk, measure=measure)
        )
    if isinstance(model, Replicas):
        return len(model.replicas) * fitting_batch(model.replicas[0], chunk, measure=measure)
    need = (measure or measured)(model, chunk)
    if need is None:
        return _together(model, chunk)
    most = int(MOST_SECONDS * model.samplerate / chunk)
    return max(1, min(most, int(SPARE * need.free) // max(1, need.used)))


def _together(model: Any, chunk: int) -> int:
    """Two short chunks on a CPU where an LSTM gains by it, which reads its weights for each step.

    In fp32 it takes as long for six sequences as for three, which 10 seconds are: a seventh of a
    separation with Demucs is saved, and a twelfth with HDemucs (benchmarks/NOTES.md).
    """
    weights = _weights(model)
    if weights is None or weights.device.type != "cpu":
        return 1
    recurs = any(isinstance(layer, nn.LSTM) for layer in model.modules())
    return 2 if recurs and 2 * chunk <= TOGETHER_SECONDS * model.samplerate else 1


def measured(model: Any, chunk: int) -> Need | None:
    """What one chunk of silence takes on a CUDA device; None on others. Resets its peak count."""
    weights = _weights(model)
    if weights is None or weights.device.type != "cuda":
        return None
    device = weights.device
    silence = torch.zeros(1, model.audio_channels, model.valid_length(chunk), device=device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        with torch.no_grad():
            model(silence)
    except RuntimeError as error:
        if not is_memory(error):
            raise
        return None
    used = torch.cuda.max_memory_allocated(device) - before
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return Need(used, torch.cuda.mem_get_info(device)[0] + cached)


def _weights(model: Any) -> Tensor | None:
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    return next(iter(parameters), None)


class Sparing:
    """A model that makes do with the memory there is: fewer chunks at once, then shorter ones.

    What it had to do without once, it does without from then on, and says so. ``shorter(model,
    windows)`` separates in chunks of the model's own segment.
    """

    def __init__(self, model: Any, shorter: Callable[[Any, Tensor], Tensor]) -> None:
        self.model, self.shorter = model, shorter
        self.most: int | None = None
        self.segment: float | None = None

    def __call__(self, windows: Tensor) -> Tensor:
        while True:
            try:
                if self.most is None and self.segment is None:
                    return self.model(windows)
                pieces = windows.split(self.most or len(windows))
                return torch.cat([self._estimates(piece) for piece in pieces])
            except RuntimeError as error:
                if not is_memory(error) or not self._spare(*windows.shape[::2]):
                    raise
            # The next attempt starts here, where the error no longer holds on to its tensors. What
            # torch keeps of freed memory goes back: libraries of a GPU take theirs beside it.
            torch.cuda.empty_cache()

    def _estimates(self, windows: Tensor) -> Tensor:
        if self.segment is None:
            return self.model(windows)
        return self.shorter(at_segment(plain(self.model), self.segment), windows)

    def _spare(self, batch: int, length: int) -> bool:
        """Ask for less from now on; False if there is nothing left to do without."""
        together = min(batch, self.most or batch)
        segment = (self.segment or length / self.model.samplerate) / 2
        if together > 1:
            self.most = together // 2
            log.warning("The device is out of memory: going on with a batch of %d.", self.most)
        elif segment >= SHORTEST:
            self.segment = segment
            log.warning("The device is out of memory: going on with segments of %.1f s.", segment)
        else:
            return False
        return True
