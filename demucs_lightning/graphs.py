"""A training step's network, forward and backward, as two CUDA graphs.

A step of a Demucs is thousands of small kernels, and those of its LSTMs thousands more; to start
them one by one takes a host longer than a fast GPU takes to run them. Here they are recorded once
and started as one. The kernels, and so the numbers, are those of the network itself.

Contract: the weights move in place, batches have the first one's shape. What the graphs read and
write stays where it was while recorded, so that a step's memory is held between steps too.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from demucs_lightning.models.precision import without_autocast

Replay = Callable[[], None]
Record = Callable[[Callable[[], Any]], tuple[Any, Replay]]


class Graphed:
    """Called like ``model`` with batches ``(B, C, T)`` as large as ``mixture``, under gradients.

    ``record(run)`` runs once, and returns the result and what will put a new one in its place.
    Raises RuntimeError where the network does what can't be recorded, such as waiting for the
    device.
    """

    def __init__(self, model: nn.Module, mixture: Tensor, record: Record | None = None) -> None:
        self.model, self.mixture = model, mixture.detach().clone()
        self.weights = [each for each in model.parameters() if each.requires_grad]
        record = record or Recorder(self._warm_up)
        self.estimates, self.forward = record(self._run)
        self.direction = torch.empty_like(self.estimates)
        self.gradients, self.backward = record(self._return)
        self.estimates = self.estimates.detach()
        self.live: Tensor | None = None  # what backward needed is in the graphs' memory

    def __call__(self, mixture: Tensor) -> Tensor:
        if mixture.shape != self.mixture.shape:
            return self.model(mixture)
        return _Replayed.apply(self, mixture, *self.weights)

    def _run(self) -> Tensor:
        estimates = self.live = self.model(self.mixture)
        return estimates

    def _return(self) -> tuple[Tensor | None, ...]:
        assert self.live is not None
        with without_autocast(self.mixture):  # in which a backward pass does not run
            return torch.autograd.grad(self.live, self.weights, self.direction, allow_unused=True)

    def _warm_up(self) -> None:
        """Libraries set up what they need for a stream."""
        self.direction = torch.zeros_like(self._run())
        self._return()

    def spare_gradients(self) -> None:
        """Copy those of the last step that are still wanted, as ``backward`` writes to where a
        weight's first gradient lies."""
        for weight, own in zip(self.weights, self.gradients, strict=True):
            last = weight.grad
            if own is not None and last is not None and last.data_ptr() == own.data_ptr():
                weight.grad = last.clone()


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graphed: Graphed, mixture: Tensor, *weights: Tensor) -> Tensor:
        ctx.graphed = graphed
        graphed.mixture.copy_(mixture)
        graphed.forward()
        return graphed.estimates.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *directions: Tensor) -> Any:
        graphed = ctx.graphed
        graphed.spare_gradients()
        graphed.direction.copy_(directions[0])
        graphed.backward()
        found = (None if each is None else each.detach() for each in graphed.gradients)
        return None, None, *found


class Recorder:
    """Records CUDA graphs that run one after the other, in memory that they share."""

    def __init__(self, warm_up: Callable[[], None]) -> None:
        self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(3):  # as torch's documentation has it
                warm_up()
        torch.cuda.current_stream().wait_stream(self.stream)

    def __call__(self, run: Callable[[], Any]) -> tuple[Any, Replay]:
        graph = torch.cuda.CUDAGraph()
        # Other threads pin memory meanwhile, which is their own affair.
        with torch.cuda.graph(
            graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
        ):
            result = run()
        return result, graph.replay
