from typing import Any

import demucs.ema
import pytest
import torch
from torch import nn

from demucs_lightning.ema import ModelEMA


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def train_a_step(model):
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn_like(value))
            else:
                value.add_(1)


@pytest.mark.parametrize("unbias", [True, False])
@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_equals_the_reference(decay, unbias):
    model = small_model()
    reference = demucs.ema.ModelEMA(model, decay, unbias=unbias)
    ema = ModelEMA(decay, unbias)
    ema.start(model)
    for _ in range(20):
        train_a_step(model)
        reference.update()
        ema.update(model)
    assert ema.count == pytest.approx(reference.count)
    assert ema.state.keys() == reference.state.keys()  # not num_batches_tracked
    for key, value in reference.state.items():
        torch.testing.assert_close(ema.state[key], value, rtol=1e-5, atol=1e-6)
    assert any(
        (ema.state[key] - value).abs().max() > 0.1
        for key, value in model.state_dict().items()
        if key in ema.state
    )


def test_first_unbiased_average_is_the_model():
    model = small_model()
    ema = ModelEMA(0.999)
    ema.update(model)
    kept = {key: value.clone() for key, value in ema.state.items()}
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in kept.items())
    train_a_step(model)  # the average is a copy, not a view
    assert all(torch.equal(ema.state[key], value) for key, value in kept.items())


def test_unbiased_average_of_equal_weights():
    model = nn.Linear(1, 1)
    ema = ModelEMA(1 - 1e-9)
    for value in [1.0, 2.0, 6.0]:
        nn.init.constant_(model.weight, value)
        ema.update(model)
    assert ema.state["weight"].item() == pytest.approx(3)


def test_continues_bit_for_bit_from_its_state():
    model = small_model()
    ema, resumed = ModelEMA(0.9), ModelEMA(0.9)
    ema.update(model)
    resumed.load_state_dict(ema.state_dict())
    for _ in range(3):
        train_a_step(model)
        ema.update(model)
        resumed.update(model)
    assert resumed.count == ema.count
    assert all(torch.equal(resumed.state[key], value) for key, value in ema.state.items())


def test_swapped_is_undone_even_after_an_error():
    model = small_model()
    ema = ModelEMA(0.9)
    ema.update(model)
    train_a_step(model)
    own = {key: value.clone() for key, value in model.state_dict().items()}

    def evaluate():
        with ema.swapped(model):
            assert torch.equal(model.state_dict()["0.weight"], ema.state["0.weight"])
            assert not torch.equal(model.state_dict()["0.weight"], own["0.weight"])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        evaluate()
    assert all(torch.equal(value, own[key]) for key, value in model.state_dict().items())


class Tied(nn.Module):
    """Shares a layer, and keeps what is not in its state dict, or no float."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Sequential(self.first, nn.BatchNorm1d(3))
        self.register_buffer("scratch", torch.ones(3), persistent=False)
        self.register_buffer("mean", torch.ones(3))
        self.register_parameter("none", None)


@pytest.mark.parametrize("make", [small_model, Tied])
def test_a_step_reads_the_state_without_building_it(make, monkeypatch):
    model, ema = make(), ModelEMA(0.9)
    ema.update(model)
    floats = {key for key, value in model.state_dict().items() if value.is_floating_point()}
    assert set(ema.state) == floats
    train_a_step(model)
    before = {key: value.clone() for key, value in ema.state.items()}
    news = model.state_dict()
    monkeypatch.delattr(nn.Module, "state_dict")
    ema.update(model)
    for key, value in ema.state.items():
        torch.testing.assert_close(value, before[key].lerp(news[key], 1 / 1.9))


def test_weights_that_are_replaced_are_seen():
    model: Any = small_model()
    ema = ModelEMA(0.0)  # the last model alone
    ema.update(model)
    other: Any = small_model().requires_grad_(False)
    train_a_step(other)
    model.load_state_dict(other.state_dict(), assign=True)
    ema.update(model)
    assert torch.equal(ema.state["0.weight"], other[0].weight)
    model.double()
    with torch.no_grad():
        model[0].weight.fill_(3.0)
    ema.update(model)
    assert (ema.state["0.weight"] == 3).all()
    with ema.swapped(model):
        assert (model[0].weight == 3).all()


def test_a_module_that_makes_its_own_state_is_asked_for_it():
    def halved(module, state, prefix, metadata):
        state[f"{prefix}weight"] = state[f"{prefix}weight"] / 2

    model: Any = nn.Sequential(nn.Linear(1, 1))
    ema = ModelEMA(0.0)
    model[0]._register_state_dict_hook(halved)
    for value in (2.0, 6.0):
        nn.init.constant_(model[0].weight, value)
        ema.update(model)
        assert ema.state["0.weight"].item() == value / 2


@pytest.mark.parametrize("decay", [-0.1, 1, float("nan")])
def test_decay_out_of_range(decay):
    with pytest.raises(ValueError, match="ema"):
        ModelEMA(decay)
