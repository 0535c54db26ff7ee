"""A model that is divided among processes (FSDP), and whole where that is needed.

Training shards it, each layer by itself; a checkpoint holds the whole, as of any other run; and
validation gives every process a whole copy of its own, because processes separate tracks of
different lengths, in which sharded layers would wait for one another in vain.

"PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel" (Zhao et al., 2023,
arXiv:2304.11277), in the form of ``fully_shard``.
"""

import copy
from collections.abc import Mapping
from typing import Any

from lightning import Callback
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

STATE = "demucs_lightning"  # of a checkpoint


def is_sharded(trainer: Any) -> bool:
    """Whether the model in training is divided, so that all processes take part in writing it."""
    return any(isinstance(value, DTensor) for value in trainer.lightning_module.parameters())


def shard(model: nn.Module, mesh: Any) -> None:
    """Divide ``model`` among the processes of ``mesh``, in place: what stands in its lists of
    layers as units of their own, and the rest together.
    """
    from torch.distributed.fsdp import fully_shard

    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    inner = {id(part) for each in lists for unit in each for part in unit.modules() if part != unit}
    for unit in (unit for each in lists for unit in each):
        if id(unit) not in inner and any(True for _ in unit.parameters()):
            fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint whose averages are put together; every process must call it."""
    state = checkpoint[STATE]
    emas = {name: {**ema, "state": gathered(ema["state"])} for name, ema in state["emas"].items()}
    return {**checkpoint, STATE: {**state, "emas": emas}}


def gathered(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors put together from their parts, in every process; all must call it."""
    return {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in state.items()
    }


def divide(checkpoint: dict[str, Any], parameters: Mapping[str, Tensor]) -> None:
    """Divide the averages of a checkpoint as the ``parameters`` of the model are, in place."""
    for ema in checkpoint[STATE]["emas"].values():
        ema["state"] = {
            name: _like(value, parameters.get(name)) for name, value in ema["state"].items()
        }


def _like(value: Tensor, parameter: Tensor | None) -> Tensor:
    if not isinstance(parameter, DTensor):
        return value
    value = value.to(parameter.to_local().device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


class WholeModel(Callback):
    """Gives validation a whole model and whole averages, and training the sharded ones back. After
    training ``pl_module.model`` is whole, but its weights are those of a checkpoint to be read.
    """

    def __init__(self) -> None:
        self.copy: nn.Module | None = None
        self.sharded: nn.Module | None = None
        self.averages: dict[str, dict[str, Tensor]] = {}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self.copy = copy.deepcopy(pl_module.model)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if self.copy is None:
            return
        self.averages = {name: ema.state for name, ema in pl_module.emas.items()}
        for ema in pl_module.emas.values():
            ema.state = gathered(ema.state)
        state = gathered(pl_module.model.state_dict())
        self.sharded, pl_module.model = pl_module.model, self.copy.to(pl_module.device)
        pl_module.model.load_state_dict(state)
        pl_module.model.eval()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._back(pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._back(pl_module)

    def _back(self, pl_module: Any) -> None:
        if self.sharded is None:
            return
        pl_module.model, self.sharded = self.sharded, None
        for name, state in self.averages.items():
            pl_module.emas[name].state = state

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        if self.copy is not None:
            pl_module.model, self.copy = self.copy, None
