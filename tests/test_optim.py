"""Which learning rate and weight decay each parameter gets."""

import logging
from typing import Any

import pytest
from torch import nn

from demucs_lightning.models import HDemucs, HTDemucs
from demucs_lightning.optim import Optimization

SMALL: Any = {"sources": ["a", "b"], "channels": 4, "nfft": 512, "depth": 2, "dconv_comp": 2}


def transformer(**kwargs: Any) -> HTDemucs:
    return HTDemucs(**SMALL | {"t_heads": 2, "t_layers": 1} | kwargs)


@pytest.mark.parametrize("model", [HDemucs(**SMALL | {"depth": 4, "nfft": 256}), nn.Linear(3, 4)])
def test_a_model_without_a_transformer_is_one_group_in_its_own_order(model: nn.Module) -> None:
    (group,) = Optimization(lr=0.1, weight_decay=0.3).optimizer(model).param_groups
    assert all(a is b for a, b in zip(group["params"], model.parameters(), strict=True))
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.1, 0.3, (0.9, 0.999))
    assert "name" not in group


@pytest.mark.parametrize(
    ("own", "settings", "expected"),
    [
        ({}, {}, (0.1, 0.0)),
        ({"t_lr": 0.2, "t_weight_decay": 0.05}, {}, (0.2, 0.05)),
        (
            {"t_lr": 0.2, "t_weight_decay": 0.05},
            {"transformer_lr": 0.4, "transformer_weight_decay": 0.0},
            (0.4, 0.0),
        ),
        ({"t_weight_decay": 0.05}, {"transformer_lr": 0.4}, (0.4, 0.05)),
    ],
)
@pytest.mark.parametrize("optim", ["adam", "adamw"])
def test_the_transformer_has_its_own(
    own: dict[str, Any],
    settings: dict[str, Any],
    expected: tuple[float, float],
    optim: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = transformer(**own)
    made = Optimization(optim=optim, lr=0.1, weight_decay=0.3, **settings).optimizer(model)
    rest, inside = made.param_groups
    assert (rest["lr"], rest["weight_decay"]) == (0.1, 0.3)
    assert (inside["lr"], inside["weight_decay"]) == expected
    assert model.crosstransformer is not None
    own_parameters = {id(p) for p in model.crosstransformer.parameters()}
    assert {id(p) for p in inside["params"]} == own_parameters
    assert len(rest["params"]) + len(inside["params"]) == len(list(model.parameters()))
    assert not caplog.records


def test_the_schedule_scales_every_group() -> None:
    settings = Optimization(lr=0.1, warmup=3, transformer_lr=0.4)
    made = settings.optimizer(transformer())
    schedule = settings.scheduler(made, lambda: 10)
    assert [group["lr"] for group in made.param_groups] == pytest.approx([0.025, 0.1])
    made.step()
    schedule.step()
    assert [group["lr"] for group in made.param_groups] == pytest.approx([0.05, 0.2])


@pytest.mark.parametrize("name", ["transformer_lr", "transformer_weight_decay"])
def test_a_setting_without_effect_is_said(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    settings: Any = {name: 0.1}
    Optimization(**settings).optimizer(nn.Linear(3, 4))
    assert caplog.messages == [f"optim.{name} has no effect: Linear has no transformer"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"transformer_lr": 0}, "optim.transformer_lr is 0: it must be above 0."),
        ({"transformer_lr": "fast"}, "optim.transformer_lr is fast: it must be above 0."),
        ({"transformer_weight_decay": -1}, "optim.transformer_weight_decay is -1: it must be 0"),
        ({"transformer_weight_decay": "x"}, "optim.transformer_weight_decay is x: it must be 0"),
    ],
)
def test_out_of_range(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Optimization(**settings)
