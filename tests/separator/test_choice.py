import pytest
import torch

from demucs_lightning.separator.choice import Choice, Parts
from tests.separator.models import FOUR, Shares, noise

STEMS = torch.arange(4 * 2 * 3).reshape(4, 2, 3).float()
MIXTURE = torch.full((2, 3), 100.0)


def parts(sources=FOUR, **choice):
    return Parts(Choice(**choice), Shares(gains=[1] * len(sources), sources=sources))


def test_all_stems_come_as_they_are():
    every = parts()
    assert every.names == every.stems == FOUR
    assert torch.equal(every.made(STEMS, None), STEMS)


def test_some_stems_in_the_order_asked_for():
    assert parts(stems=["vocals", "bass"]).names == ["vocals", "bass"]


@pytest.mark.parametrize("stem", FOUR)
def test_two_stems_that_add(stem):
    two = parts(two_stems=stem)
    assert two.names == [stem, f"no_{stem}"]
    assert two.stems == FOUR
    one, rest = two.made(STEMS, None)
    assert torch.equal(one, STEMS[FOUR.index(stem)])
    assert torch.equal(rest, STEMS.sum(0) - one)


def test_two_stems_of_what_is_left():
    two = parts(two_stems="bass", other_method="minus")
    assert two.stems == ["bass"]
    assert two.names == ["bass", "minus_bass"]
    assert torch.equal(two.made(STEMS[1:2], MIXTURE), torch.stack([STEMS[1], MIXTURE - STEMS[1]]))
    alone = parts(two_stems="bass", other_method="none")
    assert alone.names == alone.stems == ["bass"]


@pytest.mark.parametrize("sources", [FOUR, ["a", "b", "c"]])
@pytest.mark.parametrize("steps", [None, 2**15, 2**23])
def test_the_lack_goes_to_other_or_to_all(sources, steps):
    exact = parts(sources, exact_sum=True)
    stems, mixture = noise(2 * len(sources), 999).unflatten(0, (-1, 2)), noise(2, 999, seed=1)
    found = exact.completed(stems, mixture, steps)
    if steps is None:
        torch.testing.assert_close(found.sum(0), mixture, atol=1e-6, rtol=0)
        wanted, unit = mixture, 1e-6
    else:
        whole = found.double() * steps
        assert torch.equal(whole, whole.round())
        wanted, unit = (mixture.double() * steps).round() / steps, 1 / steps
        assert torch.equal(found.double().sum(0), wanted)
    moved = (found - stems).abs().amax(dim=(1, 2))
    if "other" in sources:
        kept = [name != "other" for name in sources]
        assert moved[kept].max() <= unit
    else:
        share = (wanted - stems.double().sum(0)) / len(sources)
        assert (found - stems - share).abs().max() <= 2 * unit


def test_the_lack_of_two_stems_goes_to_the_rest():
    two = parts(two_stems="vocals", exact_sum=True)
    one, rest = two.made(STEMS, MIXTURE)
    assert torch.equal(one, STEMS[3])
    assert torch.equal(rest, MIXTURE - STEMS[3])
