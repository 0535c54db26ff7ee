"""The order of extracts: complete, different in every epoch, shared without overlap, entered
anywhere.
"""

import pytest

from demucs_lightning.data.sampler import ExtractOrder, fold_seed


def batches(order: ExtractOrder, epoch: int) -> list[list[int]]:
    order.set_epoch(epoch)
    indices = list(order)
    size = order.batch_size
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def test_an_epoch_has_every_extract_once() -> None:
    order = ExtractOrder(12, 3, seed=1)
    assert len(order) == 12
    assert sorted(order) == list(range(12))
    assert list(order) == list(order)  # a pure function of seed and epoch


def test_what_does_not_fill_a_step_is_left_out() -> None:
    order = ExtractOrder(13, 3, seed=1, share=(0, 2))
    assert len(order) == 6
    other = ExtractOrder(13, 3, seed=1, share=(1, 2))
    assert len(set(order) | set(other)) == 12


def test_epochs_and_seeds_differ() -> None:
    orders = [batches(ExtractOrder(100, 4, seed=s), epoch) for s in (1, 2) for epoch in (0, 1)]
    assert all(left != right for i, left in enumerate(orders) for right in orders[:i])


def test_two_processes_share_the_steps_of_one() -> None:
    one = batches(ExtractOrder(16, 4, seed=5), 3)
    two = [batches(ExtractOrder(16, 2, seed=5, share=(rank, 2)), 3) for rank in (0, 1)]
    assert one == [left + right for left, right in zip(*two, strict=True)]


@pytest.mark.parametrize("start", range(5))
def test_a_run_enters_an_epoch_at_any_batch(start: int) -> None:
    whole = batches(ExtractOrder(20, 4, seed=2), 7)
    resumed = ExtractOrder(20, 4, seed=2, position=(7, start))
    assert len(resumed) == 20  # the epoch is as long as ever
    assert batches(resumed, 7) == whole[start:]
    assert len(batches(resumed, 8)) == 5  # the next one is entered at its start


def test_too_few_extracts_are_an_error() -> None:
    said = "batch_size=4 in each of 2 processes needs more extracts than the 7"
    with pytest.raises(ValueError, match=said):
        ExtractOrder(7, 4, share=(0, 2))


def test_seeds_are_the_same_everywhere_and_apart() -> None:
    assert fold_seed(42, 0, 0, 0, "augment") == 6791560219306471740
    seeds = {fold_seed(42, epoch, batch, "model") for epoch in range(50) for batch in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= seed < 2**63 for seed in seeds)
