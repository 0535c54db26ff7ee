"""A network divided among processes computes what the whole one does, whatever its ``memory``."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh

from demucs_lightning.models import HTDemucs
from demucs_lightning.scale.sharding import shard


@pytest.fixture
def mesh() -> Iterator[Any]:
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    gc.collect()
    distributed.destroy_process_group()


def gradients(model: HTDemucs) -> list[Tensor]:
    mixture = torch.randn(1, 2, 22050, generator=torch.Generator().manual_seed(1))
    model.train()(mixture).square().mean().backward()
    found: list[Any] = [each.grad for each in model.parameters()]
    return [each.full_tensor() if hasattr(each, "full_tensor") else each for each in found]


@pytest.mark.filterwarnings("ignore:.*returned a view tensor")
@pytest.mark.parametrize("memory", ["fast", "balanced", "low"])
def test_transformers_are_divided_with_every_memory(mesh: Any, memory: str) -> None:
    small: dict[str, Any] = {"channels": 8, "nfft": 512, "t_heads": 2, "t_layers": 3, "depth": 3}
    torch.manual_seed(0)
    whole = HTDemucs(["drums", "vocals"], memory=memory, **small)
    torch.manual_seed(0)
    divided = HTDemucs(["drums", "vocals"], memory=memory, **small)
    shard(divided, mesh)
    for found, expected in zip(gradients(divided), gradients(whole), strict=True):
        torch.testing.assert_close(found, expected)
