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


@pytest.mark.parametrize("decay", [-0.1, 1, float("nan")])
def test_decay_out_of_range(decay):
    with pytest.raises(ValueError, match="ema"):
        ModelEMA(decay)
