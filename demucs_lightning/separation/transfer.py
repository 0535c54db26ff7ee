"""Blocks on their way to a device and back, without waiting for either.

A CUDA device takes what it is told to do in order; the host only has to wait for a block that it
reads. Copies are fast and don't wait where the memory on the host is pinned.
"""

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def sent(blocks: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The blocks on a device, which may still be under way when they are given."""
    for block in blocks:
        if device.type == "cuda" and block.device.type == "cpu":
            yield block.pin_memory().to(device, non_blocking=True)
        else:
            yield block.to(device)


def fetched(blocks: Iterable[Tensor], *, behind: int = 0) -> Iterator[Tensor]:
    """The blocks in fp32 on the CPU, complete.

    Of blocks on a CUDA device up to ``behind`` are held back, so that the host makes the device go
    on with the next before it waits for one. Other blocks come at once.
    """
    arriving: deque[tuple[Tensor, torch.cuda.Event]] = deque()
    for block in blocks:
        if block.device.type != "cuda":
            yield block.float().cpu()
            continue
        arriving.append(_arriving(block))
        if len(arriving) > behind:
            yield _arrived(*arriving.popleft())
    while arriving:
        yield _arrived(*arriving.popleft())


def _arriving(block: Tensor) -> tuple[Tensor, torch.cuda.Event]:
    with torch.cuda.device(block.device):
        host = torch.empty(block.shape, dtype=torch.float32, pin_memory=True)
        host.copy_(block, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
    return host, event


def _arrived(host: Tensor, event: torch.cuda.Event) -> Tensor:
    event.synchronize()
    return host
