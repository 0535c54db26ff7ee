"""What the forms of Adam's averages, ``optim.state``, do to the loss, to memory and to time.

    python benchmarks/optimizer_state.py [--steps 80] [--data DIR] [--device cuda]

The same small Hybrid Demucs learns from the same weights and the same batches with each form, step
by step in turns, so that a busy machine is busy for all. The table has the mean loss of every
``--every`` steps, then the bytes of the averages a weight, and the time of a step and of the
optimizer alone in it, medians, the first step left out, over those of fp32.

Without ``--data``, a folder in the layout of MUSDB18-HQ, the demo songs are made and used.
"""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from machine import describe
from recipes import SOURCES, Ours, Recipe, same_weights

from demucs_lightning.commands.explain import explained
from demucs_lightning.commands.options import Parser, count, positive
from demucs_lightning.data import MusdbHQ
from demucs_lightning.data.demo import DemoSongs
from demucs_lightning.models import HDemucs
from demucs_lightning.moments import STATES
from demucs_lightning.optim import Optimization

SMALL: dict[str, Any] = {"dconv_init": 1e-3, "dconv_mode": 0}
SHIFT = 0.5  # seconds


class Side(Ours):
    """Training with one form of the averages; what each step took, and its loss."""

    def __init__(self, state: str, extracts: Any, args: Any) -> None:
        model = same_weights(partial(HDemucs, SOURCES, channels=args.channels, **SMALL))
        recipe = Recipe(args.batch_size, args.lr, shift=SHIFT, workers=0, device=args.device)
        super().__init__(model, extracts, recipe)
        self.state, self.losses, self.seconds, self.moving = state, [], [], []
        self.clock = partial(_clock, args.device, args.clock)
        self.optimizer = Optimization(lr=args.lr, state=state).optimizer(model)
        self.optimizer.register_step_pre_hook(lambda *_: self.moving.append(-self.clock()))
        self.optimizer.register_step_post_hook(self._moved)

    def _moved(self, *_: Any) -> None:
        self.moving[-1] += self.clock()

    def advance(self) -> None:
        begin = self.clock()
        self.losses.append(self.step().item())
        self.seconds.append(self.clock() - begin)

    def bytes_a_weight(self) -> float:
        """Of the averages and what else is kept for each weight, numbers of steps left out."""
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        kept = [self.optimizer.state[weight] for weight in weights]
        sizes = (value.nbytes for each in kept for name, value in each.items() if name != "step")
        return sum(sizes) / sum(weight.numel() for weight in weights)


def _clock(device: str, kind: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.process_time() if kind == "process" else time.perf_counter()


def table(sides: list[Side], every: int) -> Iterator[str]:
    """Lines of Markdown: losses, bytes, and times over those of the first side."""
    yield f"| | {' | '.join(side.state for side in sides)} |"
    yield "|---" * (len(sides) + 1) + "|"
    for first in range(0, len(sides[0].losses), every):
        last = min(first + every, len(sides[0].losses))
        means = [f"{fmean(side.losses[first:last]):.5f}" for side in sides]
        yield f"| loss, steps {first + 1} to {last} | {' | '.join(means)} |"
    sizes = [f"{side.bytes_a_weight():.2f}" for side in sides]
    yield f"| bytes a weight | {' | '.join(sizes)} |"
    for title, name in (("time of a step", "seconds"), ("of the optimizer", "moving")):
        times = [median(getattr(side, name)[1:]) for side in sides]
        yield f"| {title} | {' | '.join(f'{each / times[0]:.2f}' for each in times)} |"


def arguments(argv: list[str] | None = None) -> Any:
    parser = Parser(description="What optim.state does to loss and memory.")
    parser.add_argument("--steps", type=count, default=80)
    parser.add_argument("--every", type=count, default=20, help="steps of a line")
    parser.add_argument("--data", type=Path, help="layout of MUSDB18-HQ; default: demo songs")
    parser.add_argument("--songs", type=Path, default=Path("demo_songs"), help="where those are")
    parser.add_argument("--segment", type=positive, default=1.2, help="seconds")
    parser.add_argument("--batch-size", type=count, default=2)
    parser.add_argument("--channels", type=count, default=6, help="width of the network")
    parser.add_argument("--lr", type=positive, default=3e-3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--clock", choices=("wall", "process"), default="wall", help="process: on a busy CPU"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    with explained():
        print(describe(args.device))
        if args.steps < 2:
            raise ValueError(f"--steps is {args.steps}: it must be at least 2.")
        dset: Any = partial(MusdbHQ, args.data) if args.data else partial(DemoSongs, args.songs)
        extracts = dset(subset="training", segment=args.segment + SHIFT, shift=SHIFT)
    sides = [Side(state, extracts, args) for state in STATES]
    for _ in range(args.steps):
        for side in sides:
            side.advance()
    print("\n".join(table(sides, args.every)))


if __name__ == "__main__":
    main()
