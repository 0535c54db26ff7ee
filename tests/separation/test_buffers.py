import pytest
import torch

from demucs_lightning.separation.buffers import Incoming, Outgoing


def numbers(*sizes):
    """Blocks of the numbers from 1 on."""
    return list(torch.arange(1.0, 1 + sum(sizes)).expand(1, 1, -1).split(sizes, dim=-1))


@pytest.mark.parametrize("sizes", [[10], [3, 7], [1, 0, 1, 5, 0, 3], [1] * 10])
def test_windows_are_silent_outside_of_the_mixture(sizes):
    mixture = Incoming(numbers(*sizes))
    assert mixture.window(-2, 4).flatten().tolist() == [0, 0, 1, 2]
    assert mixture.window(4, 3).flatten().tolist() == [5, 6, 7]
    assert mixture.window(-3, 15).flatten().tolist() == [0, 0, 0, *range(1, 11), 0, 0]
    assert mixture.window(8, 4).flatten().tolist() == [9, 10, 0, 0]
    assert mixture.window(-7, 3).flatten().tolist() == [0, 0, 0]


def test_blocks_are_taken_when_they_are_needed():
    taken = []

    def blocks():
        for block in numbers(4, 4, 4):
            taken.append(block)
            yield block

    mixture = Incoming(blocks())
    assert mixture.reach(0)
    assert taken == []
    assert mixture.reach(5)
    assert (len(taken), mixture.end, mixture.over) == (2, 8, False)
    assert mixture.reach(12)
    assert not mixture.over
    assert not mixture.reach(13)
    assert (mixture.end, mixture.over) == (12, True)


def test_what_was_forgotten_is_gone_and_the_rest_in_its_place():
    mixture = Incoming(numbers(4, 4, 4))
    mixture.reach(8)
    mixture.forget(-3)
    mixture.forget(5)
    assert (mixture.begin, mixture.end) == (5, 8)
    assert mixture.window(5, 5).flatten().tolist() == [6, 7, 8, 9, 10]
    mixture.forget(99)
    assert (mixture.begin, mixture.end) == (12, 12)
    with pytest.raises(AssertionError, match="forgotten"):
        mixture.window(11, 1)


@pytest.mark.parametrize("room", [0, 3, 9])
def test_parts_add_up_and_leave_once(room):
    stems = Outgoing(room)

    def part(start, size, weight=1.0):
        return start, torch.ones(1, 1, 1, size), torch.full((1, 1, size), weight)

    stems.add([part(1, 3, weight=0.5), part(-2, 4)])
    assert stems.take(2).flatten().tolist() == [1, 1.5]
    assert stems.take(2).shape == (1, 1, 1, 0)
    stems.add([part(3, 2)])
    stems.add([part(-9, 3)])  # all of it before the mixture
    assert stems.take(5).flatten().tolist() == [0.5, 1.5, 1]
