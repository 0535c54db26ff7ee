"""Adam whose two moments take a half or a quarter of the memory.

"bf16" keeps them in bfloat16. "8bit" keeps them in blocks of 256 numbers with a scale each
(Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2021, arXiv:2110.02861), as floats
with 3 bits of mantissa: the first moment with a sign, down to 2^-15 of its block's largest, the
second without, down to 2^-31 and never zero, as an update is divided by it. Both round to one of
the two neighbours at random, so that the mean is right: the second moment moves by a thousandth at
a step, which is less than half the distance of two such numbers. The draws follow from the number
of the step alone, so every process draws alike, and a run that is continued goes on exactly.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer

STATES = ("fp32", "bf16", "8bit")
BLOCK = 256
LARGEST = 1.875  # with 3 bits of mantissa, below 2
LEFT_OUT = 20  # bits of float32's mantissa
LOWEST = {True: (127 - 15) << 3, False: (127 - 31) << 3}  # by sign: exponent and mantissa of code 0
MEANT = {"exp_avg": torch.bfloat16, "exp_avg_sq": torch.bfloat16}
MEANT |= {"codes": torch.uint8, "codes_sq": torch.uint8}


class LeanAdam(Optimizer):
    """Adam, or AdamW if ``decoupled``, with moments as ``state`` says: "bf16" or "8bit"."""

    def __init__(  # noqa: PLR0913
        self,
        params: Iterable[Any],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        state: str = "bf16",
    ) -> None:
        assert state in STATES[1:], state
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
        self.decoupled, self.form = decoupled, state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        generators: dict[Any, Generator] = {}
        for group in self.param_groups:
            for weight in (each for each in group["params"] if each.grad is not None):
                number = self.state[weight]["step"] = self.state[weight].get("step", 0) + 1
                place = (weight.device, number)
                if place not in generators:
                    generators[place] = Generator(weight.device).manual_seed(number)
                self._move(weight, group, generators[place])
        return loss

    def _move(self, weight: Tensor, group: dict[str, Any], generator: Generator) -> None:
        (beta, beta_sq), state = group["betas"], self.state[weight]
        assert weight.grad is not None
        gradient = weight.grad.float()
        if group["weight_decay"] and self.decoupled:
            weight.mul_(1 - group["lr"] * group["weight_decay"])
        elif group["weight_decay"]:
            gradient = gradient.add(weight, alpha=group["weight_decay"])
        mean, square = self._moments(state, gradient)
        mean.lerp_(gradient, 1 - beta)
        square.mul_(beta_sq).addcmul_(gradient, gradient, value=1 - beta_sq)
        self._keep(state, mean, square, generator)
        root = square.sqrt().div_((1 - beta_sq ** state["step"]) ** 0.5).add_(group["eps"])
        weight.addcdiv_(
            mean.to(weight), root.to(weight), value=-group["lr"] / (1 - beta ** state["step"])
        )

    def _moments(self, state: dict[str, Any], like: Tensor) -> tuple[Tensor, Tensor]:
        if state["step"] == 1:
            return torch.zeros_like(like), torch.zeros_like(like)
        if self.form == "bf16":
            return state["exp_avg"].float(), state["exp_avg_sq"].float()
        mean = from_codes(state["codes"], state["scales"], like, signed=True)
        return mean, from_codes(state["codes_sq"], state["scales_sq"], like, signed=False)

    def _keep(
        self, state: dict[str, Any], mean: Tensor, square: Tensor, generator: Generator
    ) -> None:
        if self.form == "bf16":
            state["exp_avg"] = to_bf16(mean, generator)
            state["exp_avg_sq"] = to_bf16(square, generator)
        else:
            state["codes"], state["scales"] = to_codes(mean, generator, signed=True)
            state["codes_sq"], state["scales_sq"] = to_codes(square, generator, signed=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for state in self.state.values():  # torch has made all of it the type of the weight
            for name in state.keys() & MEANT.keys():
                state[name] = state[name].to(MEANT[name])


def to_bf16(values: Tensor, generator: Generator) -> Tensor:
    """float32 to bfloat16, up or down at random, with the right mean."""
    rounded = _up_or_down(values.contiguous().view(torch.int32), 16, generator) & -(2**16)
    return rounded.view(torch.float32).bfloat16()


def to_codes(values: Tensor, generator: Generator, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes, uint8 (N, 256), and scales (N, 1) of the numbers in their order, zeros at the end."""
    rows = torch.nn.functional.pad(values.flatten(), (0, -values.numel() % BLOCK)).view(-1, BLOCK)
    scales = rows.abs().amax(1, keepdim=True).clamp_(min=1e-30) / LARGEST
    exact = (rows / scales).abs_().view(torch.int32)
    codes = (_up_or_down(exact, LEFT_OUT, generator) >> LEFT_OUT) - LOWEST[signed]
    codes = codes.clamp_(0, 127 if signed else 255)
    return (codes + 128 * (rows < 0) if signed else codes).to(torch.uint8), scales


def from_codes(codes: Tensor, scales: Tensor, like: Tensor, *, signed: bool) -> Tensor:
    """The numbers again, in the shape of ``like``."""
    sizes = codes.int() & 127 if signed else codes.int()
    rows = ((sizes + LOWEST[signed]) << LEFT_OUT).view(torch.float32) * scales
    if signed:
        rows = torch.where(sizes == 0, 0.0, torch.where(codes >= 128, -rows, rows))
    return rows.flatten()[: like.numel()].view(like.shape)


def _up_or_down(exact: Tensor, bits: int, generator: Generator) -> Tensor:
    """The bits of floats after a draw below the last of those that are kept."""
    shape, device = exact.shape, exact.device
    return exact + torch.randint(
        2**bits, shape, generator=generator, device=device, dtype=torch.int32
    )
