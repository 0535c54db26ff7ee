"""Which learning rate and weight decay each parameter gets, and when."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from demucs_lightning.models import HDemucs, HTDemucs
from demucs_lightning.optim import Optimization, steps_of

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


def test_learning_rates_over_time() -> None:
    plain = Optimization()
    assert [plain.factor(step, 100) for step in (0, 50, 100)] == [1, 1, 1]
    warm = Optimization(warmup=4)
    assert [warm.factor(step, 100) for step in range(6)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1, 1]
    )
    cosine = Optimization(schedule="cosine")
    assert [cosine.factor(step, 100) for step in (0, 50, 100, 120)] == pytest.approx([1, 0.5, 0, 0])


@pytest.mark.parametrize(
    ("max_epochs", "max_steps", "accumulate", "expected"),
    [
        (10, -1, 1, 70),
        (10, 50, 1, 50),
        (10, -1, 2, 40),
        (None, 50, 1, 50),
        (-1, -1, 1, float("inf")),
    ],
)
def test_steps_of_a_run(max_epochs: Any, max_steps: int, accumulate: int, expected: float) -> None:
    trainer = SimpleNamespace(
        max_epochs=max_epochs,
        max_steps=max_steps,
        accumulate_grad_batches=accumulate,
        num_training_batches=7,
    )
    assert steps_of(trainer) == expected


def test_the_optimizer_has_its_settings() -> None:
    made = Optimization(optim="adamw", lr=0.1, betas=(0.5, 0.6), weight_decay=0.3).optimizer(
        torch.nn.Linear(1, 1)
    )
    assert isinstance(made, torch.optim.AdamW)
    group = made.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.1, (0.5, 0.6), 0.3)
