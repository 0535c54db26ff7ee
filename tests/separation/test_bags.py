import copy
import math

import pytest
import torch

from demucs_lightning.separation import BagOfModels, separate
from demucs_lightning.separation.bags import at_segment, members
from tests.separation.standins import RATE, SOURCES, Broken, Identity, noise


class Gain(Identity):
    def __init__(self, gain, **settings):
        super().__init__(**settings)
        self.gain = torch.nn.Parameter(torch.tensor(float(gain)))

    def forward(self, mixture):
        return super().forward(mixture) * self.gain


def test_a_bag_is_like_its_members():
    bag = BagOfModels([Gain(1), Gain(2, segment=7)])
    assert (bag.sources, bag.audio_channels, bag.samplerate) == (SOURCES, 2, RATE)
    assert bag.weights == [[1.0] * 3] * 2
    assert bag.segment is None
    assert bag.max_segment == math.inf
    assert BagOfModels([Gain(1), Gain(1, fixed=True, segment=7)]).max_segment == 7
    assert len(list(bag.parameters())) == 2


def test_the_mean_is_weighted_source_by_source():
    mixture = noise(1, 2, 345)
    bag = BagOfModels([Gain(1), Gain(5)], [[1, 1, 0], [1, 0, 0.5]])
    for stems, gains in [(None, [3, 1, 5]), (["vocals", "drums"], [5, 3]), (["bass"], [1])]:
        estimates = separate(bag, mixture, stems=stems)
        expected = mixture[:, None] * torch.tensor(gains)[:, None, None]
        torch.testing.assert_close(estimates, expected, atol=1e-5, rtol=1e-5)


def test_members_that_serve_no_stem_never_run():
    mixture = noise(1, 2, 345)
    bag = BagOfModels([Gain(2), Broken(), Gain(4)], [[1, 0, 1], [0, 1, 0], [1, 0, 0]])
    estimates = separate(bag, mixture, stems=["vocals", "drums"], shifts=2)
    expected = mixture[:, None] * torch.tensor([2, 3])[:, None, None]
    torch.testing.assert_close(estimates, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(AssertionError, match="it ran"):
        separate(bag, mixture, stems=["bass"])


def test_the_delays_of_a_member_do_not_depend_on_the_stems():
    bag = BagOfModels([Gain(1), Gain(1)], [[1, 0, 0], [0, 1, 1]])
    separate(bag, noise(1, 2, 345), shifts=3, stems=["bass"])
    alone = bag.models[1].sizes
    assert not bag.models[0].sizes
    bag.models[1].sizes = []
    separate(bag, noise(1, 2, 345), shifts=3)
    assert bag.models[1].sizes == alone
    assert bag.models[0].sizes != alone


def test_a_segment_is_for_members_that_can_take_it():
    models = [Gain(1), Gain(1, segment=0.2, fixed=True), Gain(1, segment=0.4, fixed=True)]
    bag = BagOfModels(models, segment=0.3)
    assert [model.segment for model in bag.models] == [0.3, 0.2, 0.3]
    assert [model.segment for model in models] == [0.1, 0.2, 0.4]
    assert [model.valid_length(1) for model in bag.models][1:] == [200, 300]
    assert bag.models[1] is models[1]


def test_a_view_shares_the_weights():
    model = Gain(3)
    bag = BagOfModels([model], segment=0.3)
    assert bag.models[0] is not model
    assert bag.models[0].gain is model.gain
    assert {name: id(p) for name, p in bag.models[0].named_parameters()} == {"gain": id(model.gain)}
    bag.double()
    assert model.gain.dtype == bag.models[0].gain.dtype == torch.float64
    apart = copy.deepcopy(bag)
    assert apart.models[0].segment == 0.3
    assert apart.models[0].gain is not model.gain
    assert at_segment(model, 0.1) is model


def test_one_model_may_be_in_a_bag_more_than_once():
    model, mixture = Gain(2), noise(1, 2, 250)
    estimates = separate(BagOfModels([model, model]), mixture)
    torch.testing.assert_close(estimates, separate(model, mixture))


def test_shares_of_a_stem_add_up_to_one():
    bag = BagOfModels([Gain(1)] * 3, [[1, 1, 0], [0, 1, 2], [3, 1, 2]])
    shares = torch.tensor([member.shares for member in members(bag)])
    torch.testing.assert_close(shares.sum(0), torch.ones(3))
    assert [member.shares for member in members(bag, ["drums"])] == [[0.25], [0], [0.75]]


class Mono(Gain):
    audio_channels = 1


class Fast(Gain):
    samplerate = 2 * RATE


class Other(Gain):
    sources = ["bass", "drums", "vocals"]


@pytest.mark.parametrize(
    ("odd", "key"),
    [(Mono(1), "audio_channels"), (Fast(1), "samplerate"), (Other(1), "sources")],
)
def test_members_that_disagree(odd, key):
    with pytest.raises(ValueError, match=f"Model 3 of the bag has {key} "):
        BagOfModels([Gain(1), Gain(1), odd])


@pytest.mark.parametrize(
    "weights", [[[1, 1, 1]], [[1, 1], [1, 1]], [[1, 1, 1], [1, 1]], [[1, 1, 1]] * 3]
)
def test_weights_of_another_shape(weights):
    with pytest.raises(ValueError, match="one row for each of its 2 models"):
        BagOfModels([Gain(1), Gain(1)], weights)


@pytest.mark.parametrize("column", [[0, 0], [1, -2], [3, -1], [math.nan, 1], [math.inf, 1]])
def test_weights_that_make_no_mean(column):
    with pytest.raises(ValueError, match="weights of bass"):
        BagOfModels([Gain(1), Gain(1)], [[1, weight, 1] for weight in column])


def test_an_empty_bag():
    with pytest.raises(ValueError, match="at least one"):
        BagOfModels([])


@pytest.mark.parametrize("stems", [["bass", "piano"], ["Bass"]])
def test_an_unknown_stem_is_named_with_the_known_ones(stems):
    for model in (Identity(), BagOfModels([Gain(1)])):
        with pytest.raises(ValueError, match=f"'{stems[-1]}': the model has drums, bass, vocals"):
            separate(model, noise(1, 2, 50), stems=stems)


@pytest.mark.parametrize("stems", [[], "bass"])
def test_stems_that_are_no_list_of_names(stems):
    with pytest.raises(ValueError, match="stems is"):
        separate(Identity(), noise(1, 2, 50), stems=stems)
