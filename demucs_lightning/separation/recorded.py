"""A network on a CUDA device whose kernels are recorded once and replayed for every batch.

All whole chunks of a separation are alike, so that one recording (a CUDA graph) serves for nearly
all batches, and what it costs the host to start thousands of kernels is paid once. Contract: the
same results as the network itself; what can't be recorded runs as usual.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from demucs_lightning.separation.bags import BagOfModels

log = logging.getLogger(__name__)

MOST = 2  # recordings of a network: each has an input and outputs of its own
Replay = Callable[[Tensor], Tensor]
Record = Callable[[nn.Module, Tensor], Replay]


class Recorded(nn.Module):
    """A model that separates like ``network``, by replaying what it did with a batch as large.

    A shape is recorded when it comes for the second time, since the odd end of a track comes once.
    The weights may not move after that. ``record`` runs a network on a batch and returns what does
    the same with any batch of its shape; where it fails, that is said once, and nothing is recorded
    any more. Where memory is short, recordings go first.
    """

    def __init__(self, network: Any, record: Record | None = None) -> None:
        super().__init__()
        self.network = network
        self.sources, self.audio_channels = network.sources, network.audio_channels
        self.samplerate, self.segment = network.samplerate, network.segment
        self.max_segment = float(network.max_segment)
        self.recordings = Recordings(record or cuda_graph)

    def valid_length(self, length: int) -> int:
        return self.network.valid_length(length)

    def forward(self, mixture: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # a replay leaves nothing for a backward pass
            return self.network(mixture)
        return self.recordings.run(self.network, mixture)


class Recordings:
    """What was recorded of one network, by the shape of the batch."""

    def __init__(self, record: Record) -> None:
        self._record: Record | None = record
        self._replays: dict[torch.Size, Replay] = {}
        self._seen: set[torch.Size] = set()
        self._batches: dict[int, int] = {}

    def fitting(self, chunk: int, find: Callable[[], int]) -> int:
        """How many chunks go at once; found once, as recordings are for one size of a batch, and
        hold memory themselves."""
        if chunk not in self._batches:
            self._batches[chunk] = find()
        return self._batches[chunk]

    def run(self, network: nn.Module, mixture: Tensor) -> Tensor:
        shape = mixture.shape
        if shape in self._seen and shape not in self._replays:
            self._add(network, mixture)
        try:
            if shape in self._replays:
                return self._replays[shape](mixture)
            estimates = network(mixture)
        except torch.OutOfMemoryError:
            if not self._replays:
                raise
            self._replays.clear()
            estimates = network(mixture)
        self._seen.add(shape)
        return estimates

    def _add(self, network: nn.Module, mixture: Tensor) -> None:
        if self._record is None or len(self._replays) >= MOST:
            return
        try:
            self._replays[mixture.shape] = self._record(network, mixture)
        except RuntimeError as error:
            self._record = None
            reason = str(error).partition("\n")[0]
            log.warning("The network runs without a CUDA graph, somewhat slower: %s", reason)


def cuda_graph(network: nn.Module, mixture: Tensor) -> Replay:
    """The network on batches of the shape of ``mixture``, as one CUDA graph.

    Raises RuntimeError where it does what can't be part of one, such as waiting for the device.
    """
    with torch.cuda.device(mixture.device), torch.no_grad():
        stream = torch.cuda.Stream()
        given = mixture.clone()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set up what they need for a stream
            network(given)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            estimates = network(given)

    def replay(batch: Tensor) -> Tensor:
        given.copy_(batch)
        graph.replay()
        return estimates.clone()  # the next replay overwrites them

    return replay


def plain(model: Any) -> Any:
    """The network of a `Recorded`; any other model itself."""
    return model.network if isinstance(model, Recorded) else model


def recorded(model: Any, record: Record | None = None) -> Any:
    """`Recorded` of a model, or a bag of its members as such."""
    if not isinstance(model, BagOfModels):
        return Recorded(model, record)
    bag = BagOfModels([Recorded(member, record) for member in model.models], model.weights)
    bag.segment = model.segment
    return bag
