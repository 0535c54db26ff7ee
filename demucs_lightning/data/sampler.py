"""The order of the training extracts: a pure function of (seed, epoch, process) that can be entered
at any batch.

Every epoch is a fresh permutation of all extracts, cut into steps; the processes of a run share
each step, so that two processes of batch 2 see at step t what one process of batch 4 sees. The rest
of the division is left out.
"""

import hashlib
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


def fold_seed(*parts: int | str) -> int:
    """A seed for one purpose, such as ``(seed, epoch, batch, rank, "augment")``: 63 bits, the same
    everywhere.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class ExtractOrder(Sampler[int]):
    """Indices below ``size`` for one process, ``batch_size`` after another to a step.

    ``share`` is (rank, world). ``position`` (epoch, batch) is where a run begins: in that epoch,
    and only there, the batches before it are left out, though ``len()`` counts them. Raises
    ValueError if there are too few extracts for one step.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int = 0,
        share: tuple[int, int] = (0, 1),
        position: tuple[int, int] = (0, 0),
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world = share
        self.position = position
        self.epoch = position[0]
        self.batches = size // (batch_size * self.world)
        if not self.batches:
            processes = f" in each of {self.world} processes" if self.world > 1 else ""
            raise ValueError(
                f"batch_size={batch_size}{processes} needs more extracts than the {size} of the "
                "training set: make batch_size or segment smaller, or add tracks."
            )

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(fold_seed(self.seed, self.epoch, "order"))
        order = torch.randperm(self.size, generator=generator)[: len(self) * self.world]
        steps = order.view(self.batches, self.world, self.batch_size)
        start = self.position[1] if self.epoch == self.position[0] else 0
        return iter(steps[start:, self.rank].flatten().tolist())
