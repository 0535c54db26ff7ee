"""Adam with lean moments beside torch's, and what rounding at random keeps."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from demucs_lightning import moments
from demucs_lightning.moments import LeanAdam, from_codes, to_bf16, to_codes
from demucs_lightning.optim import Optimization


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fitted(form: str, *, steps: int = 300, optim: str = "adam", noise: float = 0.1) -> list[float]:
    """Losses of a small network that learns to be another one."""
    torch.manual_seed(0)
    make = lambda: nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 8))  # noqa: E731
    teacher, model = make(), make()
    settings = Optimization(optim=optim, lr=3e-3, weight_decay=1e-3, state=form)
    optimizer, losses = settings.optimizer(model), []
    for _ in range(steps):
        x = torch.randn(32, 20)
        aim = teacher(x) + noise * torch.randn(32, 8)
        optimizer.zero_grad()
        loss = (model(x) - aim).square().mean()
        loss.backward()
        optimizer.step()
        losses.append((model(x) - teacher(x)).square().mean().item())
    return losses


@pytest.mark.parametrize("optim", ["adam", "adamw"])
@pytest.mark.parametrize(("form", "near"), [("bf16", 0.03), ("8bit", 0.15)])
def test_it_learns_as_adam_does(form: str, near: float, optim: str) -> None:
    exact, lean = fitted("fp32", optim=optim), fitted(form, optim=optim)
    assert lean[0] == pytest.approx(exact[0], rel=1e-4)  # the first step has exact moments
    end, ends = sum(exact[-50:]) / 50, sum(lean[-50:]) / 50
    assert end < 0.1 * exact[0]
    assert ends == pytest.approx(end, rel=near)


def test_the_first_step_is_adams() -> None:
    for optim in ("adam", "adamw"):
        start = nn.Linear(30, 20)
        models = [deepcopy(start) for _ in range(3)]
        for model, form in zip(models, ("fp32", "bf16", "8bit"), strict=True):
            settings = Optimization(optim=optim, lr=0.1, weight_decay=0.1, state=form)
            optimizer = settings.optimizer(model)
            model(torch.ones(2, 30)).square().sum().backward()
            optimizer.step()
        for other in models[1:]:
            torch.testing.assert_close(other.weight, models[0].weight, rtol=1e-4, atol=1e-6)


def test_bf16_is_the_nearer_of_two_more_often_and_right_in_the_mean() -> None:
    value = torch.tensor(1.0 + 2**-7 * 0.3)
    draws = to_bf16(value.expand(40_000).clone(), seeded()).float()
    assert sorted(draws.unique().tolist()) == [1.0, 1 + 2**-7]
    assert (draws > 1).float().mean().item() == pytest.approx(0.3, abs=0.01)
    exact = torch.randn(1000).bfloat16()
    assert torch.equal(to_bf16(exact.float(), seeded()), exact)


@pytest.mark.parametrize("signed", [True, False])
def test_eight_bits_keep_sizes_and_means(signed: bool) -> None:
    values = torch.randn(700, generator=seeded()) * torch.logspace(-3, 0, 700)
    values = values if signed else values.square()
    found = torch.stack([_again(values, number, signed=signed) for number in range(400)])
    near = values.abs() > values.abs().max() * (1e-3 if signed else 1e-5)
    error = ((found - values) / values)[:, near]
    assert error.abs().max() < 0.125
    assert error.mean(0).abs().max() < 0.125 * 0.5 / 20 * 5
    codes, scales = to_codes(values, seeded(), signed=signed)
    assert (codes.dtype, codes.shape, scales.shape) == (torch.uint8, (3, 256), (3, 1))
    assert (found >= 0).all() != signed
    assert signed or (found > 0).all()  # an update is divided by it


def _again(values: Tensor, seed: int, *, signed: bool) -> Tensor:
    codes, scales = to_codes(values, seeded(seed), signed=signed)
    return from_codes(codes, scales, values, signed=signed)


def test_zeros_and_one_number() -> None:
    for values in (torch.zeros(3, 5), torch.tensor(0.25), torch.full((300,), -2.0)):
        codes, scales = to_codes(values, seeded(), signed=True)
        torch.testing.assert_close(from_codes(codes, scales, values, signed=True), values)
        assert torch.equal(to_bf16(values, seeded()).float(), values)


@pytest.mark.parametrize(("form", "most"), [("bf16", 4.0), ("8bit", 2.1)])
def test_bytes_a_weight(form: str, most: float) -> None:
    model = nn.Linear(100, 256)
    optimizer = Optimization(state=form).optimizer(model)
    model(torch.ones(2, 100)).sum().backward()
    optimizer.step()
    kept = optimizer.state[model.weight].values()
    size = sum(each.nbytes for each in kept if isinstance(each, Tensor))
    assert size <= most * model.weight.numel()


@pytest.mark.parametrize("form", ["bf16", "8bit"])
def test_a_state_that_is_loaded_goes_on_exactly(form: str) -> None:
    torch.manual_seed(0)
    models = [nn.Linear(30, 20) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers: list[Any] = [LeanAdam(each.parameters(), 1e-2, state=form) for each in models]

    def step(number: int, seed: int) -> None:
        optimizers[number].zero_grad()
        models[number](torch.randn(4, 30, generator=seeded(seed))).square().sum().backward()
        optimizers[number].step()

    for seed in range(3):
        step(0, seed)
    models[1].load_state_dict(models[0].state_dict())
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    for seed in range(3, 6):
        step(0, seed)
        step(1, seed)
    assert torch.equal(models[0].weight, models[1].weight)
    assert torch.equal(models[0].bias, models[1].bias)
    kept = optimizers[1].state[models[1].weight]
    assert {each.dtype for each in kept.values() if isinstance(each, Tensor)} <= {
        *(torch.bfloat16, torch.uint8, torch.float32)
    }
    assert any(each.dtype != torch.float32 for each in kept.values() if isinstance(each, Tensor))


@pytest.mark.parametrize("had", ["fp32", "bf16", "8bit"])
def test_another_form_than_the_checkpoints_is_refused(had: str) -> None:
    model = nn.Linear(3, 2)
    optimizer = Optimization(state=had).optimizer(model)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    for form in ("fp32", "bf16", "8bit"):
        settings = Optimization(state=form)
        settings.check_resumed([])
        if form == had:
            settings.check_resumed([optimizer.state_dict()])
        else:
            with pytest.raises(ValueError, match=f"optim.state is {form}, .* had {had}: set"):
                settings.check_resumed([optimizer.state_dict()])


class Kernels(TorchDispatchMode):
    """Counts what computes or copies."""

    VIEWS = frozenset({"view", "slice", "split", "split_with_sizes", "detach", "alias", "expand"})

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += name not in self.VIEWS and not name.startswith("empty")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("form", "most"), [("bf16", 35), ("8bit", 75)])
def test_the_kernels_of_a_step_are_those_of_a_few_buckets(form: str, most: int) -> None:
    weights = [nn.Parameter(torch.randn(10, 30)) for _ in range(40)]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer = LeanAdam(weights, 1e-2, state=form, weight_decay=0.1)
    optimizer.step()
    with Kernels() as kernels:
        optimizer.step()
    assert kernels.count <= most


@pytest.mark.parametrize("form", ["bf16", "8bit"])
def test_weights_of_all_sizes_move_as_each_does_alone(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = [(), (0,), (7,), (256,), (3, 5, 2), (40, 30), (1,), (2, 300)]
    gradients = [
        torch.randn(shape, generator=seeded(seed)) * 10**seed for seed, shape in enumerate(shapes)
    ]

    def moved(together: bool) -> tuple[list[Tensor], Any]:
        weights = [nn.Parameter(torch.ones(shape)) for shape in shapes]
        weights.append(nn.Parameter(torch.ones(6, 4).T))  # lies in another order
        monkeypatch.setattr(moments, "BUCKETS", {"cuda": 0, "cpu": 1000 if together else 0})
        optimizer = LeanAdam(weights, 1e-3, state=form)
        for _ in range(20):
            for weight, gradient in zip(weights, [*gradients, torch.ones(4, 6)], strict=True):
                weight.grad = gradient.clone()
            optimizer.step()
        return [weight.detach() for weight in weights], optimizer

    (alone, _), (together, optimizer) = moved(together=False), moved(together=True)
    for one, other, gradient in zip(alone, together, [*gradients, torch.ones(4, 6)], strict=True):
        # Equal gradients: 20 full steps against their sign, whatever the size of the neighbours.
        torch.testing.assert_close(other, 1 - 0.02 * gradient.sign(), atol=2e-3, rtol=0)
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0)
    if form == "8bit":
        rows = [-(-weight.numel() // 256) for weight in together]
        kept = [optimizer.state[weight] for weight in optimizer.param_groups[0]["params"]]
        assert [state["codes"].shape for state in kept] == [(count, 256) for count in rows]
        assert [state["scales_sq"].shape for state in kept] == [(count, 1) for count in rows]


@pytest.mark.parametrize("form", ["bf16", "8bit"])
def test_a_state_that_was_kept_weight_by_weight_goes_on(form: str) -> None:
    weights = [nn.Parameter(torch.zeros(20, 30)), nn.Parameter(torch.zeros(3))]
    optimizer = LeanAdam(weights, 1e-2, betas=(0.5, 0.5), state=form)
    state: dict[int, dict[str, Any]] = {0: {"step": 4}, 1: {"step": 4}}
    for number, weight in enumerate(weights):
        mean, square = torch.full_like(weight, -2.0), torch.full_like(weight, 9.0)
        if form == "bf16":
            state[number] |= {"exp_avg": mean.bfloat16(), "exp_avg_sq": square.bfloat16()}
        else:
            for name, values in (("", mean), ("_sq", square)):
                codes, scales = to_codes(values, seeded(), signed=not name)
                state[number] |= {f"codes{name}": codes, f"scales{name}": scales}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    for weight in weights:
        weight.grad = torch.full_like(weight, 1.0)
    optimizer.step()
    mean, square = (-2 + 1) / 2 / (1 - 0.5**5), (9 + 1) / 2 / (1 - 0.5**5)
    for weight in weights:
        torch.testing.assert_close(
            weight.detach(), torch.full_like(weight, -0.01 * mean / square**0.5)
        )


def test_weights_that_skip_steps_have_their_own_number() -> None:
    weights = [nn.Parameter(torch.zeros(5)) for _ in range(3)]
    optimizer = LeanAdam(weights, 1.0, state="bf16")
    for number in range(3):
        for weight in weights[: number + 1]:
            weight.grad = torch.ones(5)
        optimizer.step()
    for weight, steps in zip(weights, (3, 2, 1), strict=True):
        torch.testing.assert_close(
            weight.detach(), torch.full((5,), -float(steps)), atol=0.05, rtol=0
        )
