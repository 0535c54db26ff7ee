from collections import deque
from typing import Any

import torch

from demucs_lightning.separation import fetched, sent, transfer
from tests.separation.standins import noise

CPU = torch.device("cpu")


def test_blocks_of_the_host_pass_as_they_are():
    blocks = [noise(2, 10, seed=seed) for seed in range(3)]
    for block, passed in zip(blocks, fetched(sent(iter(blocks), CPU)), strict=True):
        assert passed is block


def test_blocks_arrive_in_fp32():
    (block,) = fetched([noise(2, 10).bfloat16()])
    assert block.dtype == torch.float32
    torch.testing.assert_close(block, noise(2, 10), atol=0.02, rtol=0.02)


def test_the_next_block_is_asked_for_before_the_last_is_waited_for(monkeypatch):
    done: deque[str] = deque()

    class Far:
        """A block on a GPU."""

        device = torch.device("cuda", 0)

        def __init__(self, number):
            self.number = number

    def computed() -> Any:
        for number in range(3):
            done.append(f"computes {number}")
            yield Far(number)

    def arrived(block, event):
        done.append(f"arrives {block}")
        return block

    monkeypatch.setattr(transfer, "_arriving", lambda block: (block.number, None))
    monkeypatch.setattr(transfer, "_arrived", arrived)
    assert list(fetched(computed(), behind=1)) == [0, 1, 2]
    assert list(done) == [
        *("computes 0", "computes 1", "arrives 0", "computes 2", "arrives 1", "arrives 2")
    ]
    done.clear()
    assert list(fetched(computed())) == [0, 1, 2]
    assert list(done)[:3] == ["computes 0", "arrives 0", "computes 1"]
