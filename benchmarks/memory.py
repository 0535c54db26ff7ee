"""What a training step keeps for its backward pass, beside the reference package's classes.

    python benchmarks/memory.py [--segment 10] [--models Demucs HDemucs HTDemucs]

Counts the bytes that autograd saves in the forward pass of one stereo example, each storage once,
parameters left out, in fp32 and under bf16 autocast, with each setting of ``memory``. This is what
batch size and segment multiply, on any device; it needs no GPU, and does not depend on the machine.
"""

from types import SimpleNamespace

import peer
import torch
from machine import describe
from torch import Tensor, nn
from train_step import MODELS, SOURCES

from demucs_lightning.commands.options import Parser, positive
from demucs_lightning.models.recompute import MEMORY


def saved_bytes(model: nn.Module, mixture: Tensor) -> int:
    """Bytes of the distinct storages that ``model(mixture)`` keeps for backward."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, SimpleNamespace] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            # Holding on to the storage keeps its address from being used again.
            kept[storage.data_ptr()] = SimpleNamespace(storage=storage, size=storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(mixture)
    del output
    return sum(each.size for each in kept.values())


def main() -> None:
    parser = Parser(description="Bytes kept for backward, beside the reference's.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--segment", type=positive, default=10.0, help="seconds of the example")
    args = parser.parse_args()
    print(describe("cpu", peer.demucs))
    print(f"MB kept for backward of one {args.segment:g} s example")
    print(f"{'':<14}" + "".join(f"{each:>10}" for each in ("reference", *MEMORY)))
    mixture = torch.randn(1, 2, int(args.segment * 44100))
    for name in args.models:
        own, reference, kwargs = MODELS[name]
        model, theirs = (klass(SOURCES, **kwargs).train() for klass in (own, reference))
        for lowered in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
                found = [saved_bytes(theirs, mixture)]
                for model.memory in MEMORY:
                    found.append(saved_bytes(model, mixture))
            label = f"{name} {'bf16' if lowered else 'fp32'}"
            print(f"{label:<14}" + "".join(f"{each / 1e6:10.0f}" for each in found), flush=True)


if __name__ == "__main__":
    main()
