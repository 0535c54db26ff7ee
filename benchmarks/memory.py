"""What a training step keeps for its backward pass, beside the reference package's classes.

    python benchmarks/memory.py [--segment 10] [--models Demucs HDemucs HTDemucs]

Counts the bytes that autograd saves in the forward pass of one stereo example, each storage once,
parameters left out. This is what batch size and segment multiply, on any device; it needs no GPU,
and does not depend on the machine.
"""

import argparse
from types import SimpleNamespace

import demucs
import torch
from machine import describe
from torch import Tensor, nn
from train_step import MODELS, SOURCES


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
    parser = argparse.ArgumentParser(description="Bytes kept for backward, beside the reference's.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--segment", type=float, default=10.0, help="seconds of the example")
    args = parser.parse_args()
    print(describe("cpu", demucs))
    mixture = torch.randn(1, 2, int(args.segment * 44100))
    for name in args.models:
        own, reference, kwargs = MODELS[name]
        ours, theirs = (
            saved_bytes(klass(SOURCES, **kwargs).train(), mixture) / 2**20
            for klass in (own, reference)
        )
        print(
            f"{name:<8}  {ours:6.0f} MiB kept for backward of one {args.segment:g} s example in "
            f"fp32, reference {theirs:6.0f} MiB, ratio {ours / theirs:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
