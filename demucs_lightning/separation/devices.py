"""One model on several devices at once."""

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from demucs_lightning.separation.bags import BagOfModels


class Replicas(nn.Module):
    """Copies of a model on several devices, which share out the chunks of each batch in order.

    It separates like the model itself; a batch should have at least one chunk for each device. The
    model stays where it is.
    """

    def __init__(self, model: Any, devices: Sequence[torch.device | str]) -> None:
        super().__init__()
        if not devices:
            raise ValueError("devices is empty: a model needs at least one.")
        self.sources, self.audio_channels = model.sources, model.audio_channels
        self.samplerate, self.segment = model.samplerate, model.segment
        self.max_segment = float(model.max_segment)
        self.replicas: Any = nn.ModuleList(copy.deepcopy(model).to(device) for device in devices)

    def valid_length(self, length: int) -> int:
        return self.replicas[0].valid_length(length)

    def forward(self, mixture: Tensor) -> Tensor:
        pieces = mixture.chunk(len(self.replicas))
        kind = mixture.device.type
        autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        grad = torch.is_grad_enabled()

        def run(replica: nn.Module, piece: Tensor) -> Tensor:
            device = next(replica.parameters(), piece).device
            # Both are settings of a thread.
            with torch.set_grad_enabled(grad), torch.autocast(kind, autocast[1], autocast[0]):
                return replica(piece.to(device)).to(mixture.device)

        with ThreadPoolExecutor(len(pieces)) as threads:
            return torch.cat(list(threads.map(run, self.replicas, pieces)))


def on_devices(model: Any, devices: Sequence[torch.device | str]) -> Any:
    """`Replicas` of a model, or a bag of the `Replicas` of its members."""
    if not isinstance(model, BagOfModels):
        return Replicas(model, devices)
    return BagOfModels([Replicas(member, devices) for member in model.models], model.weights)
