"""Adam whose two moments take a half or a quarter of the memory.

"bf16" keeps them in bfloat16. "8bit" keeps them in blocks of 256 numbers with a scale each
(Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2021, arXiv:2110.02861), as floats
with 3 bits of mantissa: the first moment with a sign, down to 2^-15 of its block's largest, the
second without, down to 2^-31 and never zero, as an update is divided by it. Both round to one of
the two neighbours at random, so that the mean is right: the second moment moves by a thousandth at
a step, which is less than half the distance of two such numbers. The draws follow from the number
of the step alone, so every process draws alike, and a run that is continued goes on exactly.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer

STATES = ("fp32", "bf16", "8bit")
BLOCK = 256
# Numbers of weights that move together: a GPU has fewer kernels to begin, for 200 MB or what the
# largest weight takes; on a CPU they stay in its cache.
BUCKETS = {"cuda": 2**23, "cpu": 2**18}
LARGEST = 1.875  # with 3 bits of mantissa, below 2
LEFT_OUT = 20  # bits of float32's mantissa
LOWEST = {True: (127 - 15) << 3, False: (127 - 31) << 3}  # by sign: exponent and mantissa of code 0
MEANT = {"exp_avg": torch.bfloat16, "exp_avg_sq": torch.bfloat16}
MEANT |= {"codes": torch.uint8, "codes_sq": torch.uint8}
MEANT |= {"scales": torch.float32, "scales_sq": torch.float32}


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
            alike: dict[Any, list[Tensor]] = {}
            for weight in (each for each in group["params"] if each.grad is not None):
                number = self.state[weight]["step"] = self.state[weight].get("step", 0) + 1
                alike.setdefault((weight.device, number, weight.dtype), []).append(weight)
            for (*place, _), weights in alike.items():
                if (device_step := tuple(place)) not in generators:
                    generators[device_step] = Generator(place[0]).manual_seed(place[1])
                for bucket in _buckets(weights):
                    self._move(bucket, group, generators[device_step])
        return loss

    def _move(self, weights: list[Tensor], group: dict[str, Any], generator: Generator) -> None:
        """A step of ``weights``, which lie one behind the other for it."""
        (beta, beta_sq), states = group["betas"], [self.state[weight] for weight in weights]
        gradient = _flat([weight.grad for weight in weights if weight.grad is not None])
        if group["weight_decay"] and self.decoupled:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        elif group["weight_decay"]:
            gradient = gradient.add(_flat(weights), alpha=group["weight_decay"])
        mean, square = self._moments(states, gradient)
        mean.lerp_(gradient, 1 - beta)
        square.mul_(beta_sq).addcmul_(gradient, gradient, value=1 - beta_sq)
        del gradient
        self._keep(weights, mean, square, generator)
        step = states[0]["step"]
        root = square.sqrt_().div_((1 - beta_sq**step) ** 0.5).add_(group["eps"])
        update = mean.div_(root).to(weights[0].dtype)
        torch._foreach_add_(
            weights, _pieces(update, weights), alpha=-group["lr"] / (1 - beta**step)
        )

    def _moments(self, states: list[dict[str, Any]], like: Tensor) -> tuple[Tensor, Tensor]:
        if states[0]["step"] == 1:
            return torch.zeros_like(like), torch.zeros_like(like)
        kept = {name: [state[name] for state in states] for name in states[0].keys() - {"step"}}
        if self.form == "bf16":
            return _flat(kept["exp_avg"]), _flat(kept["exp_avg_sq"])
        codes, scales = torch.cat(kept["codes"]), torch.cat(kept["scales"])
        codes_sq, scales_sq = torch.cat(kept["codes_sq"]), torch.cat(kept["scales_sq"])
        mean = from_codes(codes, scales, like, signed=True)
        return mean, from_codes(codes_sq, scales_sq, like, signed=False)

    def _keep(
        self, weights: list[Tensor], mean: Tensor, square: Tensor, generator: Generator
    ) -> None:
        kept: dict[str, Any] = {}
        if self.form == "bf16":
            kept["exp_avg"] = _pieces(to_bf16(mean, generator), weights)
            kept["exp_avg_sq"] = _pieces(to_bf16(square, generator), weights)
        else:
            rows = [_room(weight) // BLOCK for weight in weights]
            codes, scales = to_codes(mean, generator, signed=True)
            kept["codes"], kept["scales"] = codes.split(rows), scales.split(rows)
            codes, scales = to_codes(square, generator, signed=False)
            kept["codes_sq"], kept["scales_sq"] = codes.split(rows), scales.split(rows)
        for name, pieces in kept.items():
            for weight, piece in zip(weights, pieces, strict=True):
                self.state[weight].setdefault(name, torch.empty_like(piece))
            torch._foreach_copy_([self.state[weight][name] for weight in weights], pieces)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for state in self.state.values():  # torch has made all of it the type of the weight
            for name in state.keys() & MEANT.keys():
                state[name] = state[name].to(MEANT[name], copy=True)  # it is written into


def to_bf16(values: Tensor, generator: Generator) -> Tensor:
    """float32 to bfloat16, up or down at random, with the right mean."""
    rounded = _up_or_down(values.contiguous().view(torch.int32), 16, generator)
    return rounded.bitwise_and_(-(2**16)).view(torch.float32).bfloat16()


def to_codes(values: Tensor, generator: Generator, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes, uint8 (N, 256), and scales (N, 1) of the numbers in their order, zeros at the end."""
    rows = torch.nn.functional.pad(values.flatten(), (0, -values.numel() % BLOCK)).view(-1, BLOCK)
    scales = rows.abs().amax(1, keepdim=True).clamp_(min=1e-30) / LARGEST
    exact = (rows / scales).abs_().view(torch.int32)
    codes = _up_or_down(exact, LEFT_OUT, generator).bitwise_right_shift_(LEFT_OUT)
    codes = codes.sub_(LOWEST[signed]).clamp_(0, 127 if signed else 255).to(torch.uint8)
    return (codes.add_(rows < 0, alpha=128) if signed else codes), scales


def from_codes(codes: Tensor, scales: Tensor, like: Tensor, *, signed: bool) -> Tensor:
    """The numbers again, in the shape of ``like``."""
    rows = _meaning(signed, codes.device)[codes.int()].mul_(scales)
    return rows.flatten()[: like.numel()].view(like.shape)


@cache
def _meaning(signed: bool, device: torch.device) -> Tensor:
    """What each of the 256 codes stands for where the scale is 1."""
    codes = torch.arange(256, dtype=torch.int32)
    sizes = codes & 127 if signed else codes
    values = ((sizes + LOWEST[signed]) << LEFT_OUT).view(torch.float32)
    if signed:
        values = torch.where(sizes == 0, 0.0, torch.where(codes >= 128, -values, values))
    return values.to(device)


def _up_or_down(exact: Tensor, bits: int, generator: Generator) -> Tensor:
    """The bits of floats after a draw below the last of those that are kept."""
    shape, device = exact.shape, exact.device
    draws = torch.randint(2**bits, shape, generator=generator, device=device, dtype=torch.int32)
    return draws.add_(exact)


def _room(weight: Tensor) -> int:
    """The numbers of a weight, in whole blocks: none has numbers of two weights."""
    return weight.numel() + -weight.numel() % BLOCK


def _buckets(weights: list[Tensor]) -> Iterator[list[Tensor]]:
    """The weights in their order, as many at a time as `BUCKETS` says."""
    most = BUCKETS.get(weights[0].device.type, BUCKETS["cuda"])
    bucket, room = [], 0
    for weight in weights:
        if bucket and room + _room(weight) > most:
            yield bucket
            bucket, room = [], 0
        bucket.append(weight)
        room += _room(weight)
    yield bucket


def _flat(tensors: list[Tensor]) -> Tensor:
    """The numbers of tensors one behind the other, each in whole blocks, in float32; what is one
    piece already is not copied."""
    zeros = tensors[0].new_zeros(BLOCK)
    pairs = [(each.flatten(), zeros[: -each.numel() % BLOCK]) for each in tensors]
    parts = [part for pair in pairs for part in pair if len(part)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts or [zeros[:0]])).float()


def _pieces(flat: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """What of ``flat`` is of each weight, in its shape."""
    parts = zip(flat.split([_room(weight) for weight in weights]), weights, strict=True)
    return [part[: weight.numel()].view(weight.shape) for part, weight in parts]
