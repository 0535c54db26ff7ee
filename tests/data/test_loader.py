"""The loader gives the same batches, in the same order, whatever the number of its threads."""

import threading
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from demucs_lightning.data import MusdbHQ, collate
from demucs_lightning.data.loader import TrainingLoader, read_ahead
from demucs_lightning.data.sampler import ExtractOrder


@pytest.fixture
def dataset(musdb_root: Path) -> MusdbHQ:
    return MusdbHQ(musdb_root, segment=2.0, shift=1.0, samplerate=8000)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_are_the_items_in_the_order_of_the_sampler(dataset: MusdbHQ, threads: int) -> None:
    order = ExtractOrder(len(dataset), 4, seed=3)
    indices = list(order)
    loader = TrainingLoader(dataset, order, threads=threads)
    batches = list(loader)
    assert len(batches) == len(loader) == len(indices) // 4
    for number, batch in enumerate(batches):
        expected = collate([dataset[index] for index in indices[4 * number : 4 * number + 4]])
        assert batch.keys() == expected.keys()
        assert torch.equal(batch["stems"], expected["stems"])
        assert batch["stems"].stride() == expected["stems"].stride()  # interleaved as in the files
        assert torch.equal(batch["mean"], expected["mean"])
        assert batch["track"] == expected["track"]


def test_a_batch_for_a_gpu_is_read_into_pinned_memory(
    dataset: MusdbHQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: list[Tensor] = []
    plain = torch.empty

    def empty(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        made = plain(*args, **kwargs)
        if pin_memory:
            pinned.append(made)
        return made

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)  # of what is pinned already
    order = ExtractOrder(len(dataset), 4, seed=3)
    expected = next(iter(TrainingLoader(dataset, order)))
    assert not pinned
    stems = next(iter(TrainingLoader(dataset, order, pin=True)))["stems"]
    assert stems.data_ptr() in {tensor.data_ptr() for tensor in pinned}
    assert torch.equal(stems, expected["stems"])
    assert stems.stride() == expected["stems"].stride()


def test_other_data_sets_need_only_items(dataset: MusdbHQ) -> None:
    items = [dataset[index] for index in range(8)]
    order = ExtractOrder(len(items), 2, seed=0)
    for mine, theirs in zip(
        TrainingLoader(items, order), TrainingLoader(dataset, order, threads=2), strict=False
    ):
        assert torch.equal(mine["stems"], theirs["stems"])


def slow(place: int) -> int:
    time.sleep(0.02 if place % 3 == 0 else 0.001)
    return place * 10


def test_order_is_kept_where_threads_finish_in_another() -> None:
    assert list(read_ahead(slow, iter(range(20)), threads=4)) == [10 * n for n in range(20)]


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_it_reads_two_ahead_of_every_thread_and_no_further(threads: int) -> None:
    asked: list[int] = []

    def places() -> Iterator[int]:
        for place in count():
            asked.append(place)
            yield place

    list(islice(read_ahead(slow, places(), threads=threads), 5))
    assert len(asked) == 5 + 2 * threads


def test_threads_end_where_the_iteration_is_left() -> None:
    batches = read_ahead(slow, iter(range(1000)), threads=3)
    next(batches)
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("reader") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_error_in_a_thread_is_raised_in_its_turn() -> None:
    def load(place: int) -> int:
        if place == 2:
            raise ValueError("drums.wav has changed")
        return place

    batches = read_ahead(load, iter(range(5)), threads=2)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(ValueError, match=r"drums\.wav has changed"):
        next(batches)
