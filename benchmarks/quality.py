"""What training learns in the same time: this project beside the reference package.

    python benchmarks/quality.py [--minutes 20] [--data DIR] [--device cuda] [--out quality]

The same small Hybrid Demucs, from the same weights, on the same extracts, for the same wall-clock
time: the reference's class in the reference's recipe (fp32), and this project's in fp32 and in
bf16 (see recipes.py). They take turns of a few seconds, so that a busy machine is busy for all. A
clock of its own for each stops while the held-out songs are scored: nSDR of a moving average of the
weights, over time, as a table and as a picture.

After the race bf16 and fp32 are trained to the same number of steps, the greater of the two, and
must end within 0.1 dB of each other: what bf16 loses, and the order of rounding alone changes runs
by about as much.

Without ``--data``, a folder in the layout of MUSDB18-HQ, the demo songs are made and used.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import peer
import torch
from machine import describe
from matplotlib.figure import Figure
from recipes import SAMPLERATE, SOURCES, Ours, Recipe, Reference, same_weights
from torch import nn

from demucs_lightning.commands.explain import explained
from demucs_lightning.commands.options import Parser, count, natural, positive
from demucs_lightning.data import MusdbHQ
from demucs_lightning.data.demo import DemoSongs
from demucs_lightning.ema import ModelEMA
from demucs_lightning.metrics import new_sdr
from demucs_lightning.models import HDemucs

SMALL: dict[str, Any] = {"dconv_init": 1e-3, "dconv_mode": 0}
COLOURS = {"reference fp32": "0.5", "ours fp32": "tab:blue", "ours bf16": "tab:orange"}
AIM = 0.1  # dB
SHIFT = 0.5  # seconds of an extract that augmentation takes
PIECE = 8 * SAMPLERATE  # of a song that is separated at a time, by either side


@dataclass
class Runner:
    """One side of the race: its own clock, and what was scored when."""

    name: str
    model: nn.Module
    step: Callable[[], Any]
    device: str
    clock: Callable[[], float] = time.perf_counter
    ema: ModelEMA = field(default_factory=lambda: ModelEMA(0.98))
    seconds: float = 0.0
    steps: int = 0
    curve: list[tuple[float, int, float]] = field(default_factory=list)

    def advance(self, *, seconds: float = math.inf, steps: float = math.inf) -> None:
        """Train for so long, or so many steps, whichever is over first."""
        begin, last = self.clock(), self.steps + steps
        while self.clock() - begin < seconds and self.steps < last:
            self.step()
            self.ema.update(self.model)
            self.steps += 1
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        self.seconds += self.clock() - begin

    def score(self, songs: Any) -> float:
        """Mean nSDR over songs and sources, in dB, of the average of the weights, in fp32."""
        self.model.eval()
        with self.ema.swapped(self.model), torch.no_grad():
            values = [_nsdr(self.model, song, self.device) for song in songs]
        self.model.train()
        self.curve.append((self.seconds, self.steps, sum(values) / len(values)))
        return self.curve[-1][-1]


def _nsdr(model: Any, song: Any, device: str) -> float:
    mixture, stems = ((song[key] - song["mean"]) / song["std"] for key in ("mixture", "stems"))
    pieces = mixture[None].to(device).split(PIECE, dim=-1)
    estimates = torch.cat([model(piece) for piece in pieces], dim=-1)
    return new_sdr(stems[None].to(device), estimates).mean().item()


def race(runners: list[Runner], songs: Any, args: Any) -> None:
    """Give every runner the same time, in turns, and score all of them now and then."""
    total = args.minutes * 60
    for mark in range(1, args.points + 1):
        until = total * mark / args.points
        while any(runner.seconds < until for runner in runners):
            runner = min(runners, key=lambda each: each.seconds)
            runner.advance(seconds=min(args.turn, until - runner.seconds))
        for runner in runners:
            runner.score(songs)
        points = [runner.curve[-1] for runner in runners]
        print(row(duration(until, apart=total / args.points), points), flush=True)


def level(runners: list[Runner], songs: Any) -> float:
    """Train the slower to the steps of the faster; what the second has more than the first, dB."""
    last = max(runner.steps for runner in runners)
    for runner in runners:
        runner.advance(steps=last - runner.steps)
    first, second = (runner.score(songs) for runner in runners)
    return second - first


def duration(seconds: float, *, apart: float) -> str:
    """In minutes, or in seconds where the minutes of two so far apart would be written alike."""
    return f"{seconds / 60:6.1f} min" if apart >= 6 else f"{seconds:8.4g} s"


def row(title: str, points: list[tuple[float, int, float]]) -> str:
    return title + "".join(f"{nsdr:10.2f} dB {steps:6d} steps" for _, steps, nsdr in points)


def picture(runners: list[Runner], path: Path) -> None:
    """nSDR over the time of each."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for runner in runners:
        minutes = [seconds / 60 for seconds, _, _ in runner.curve]
        values = [nsdr for _, _, nsdr in runner.curve]
        axes.plot(minutes, values, label=runner.name, color=COLOURS[runner.name], marker=".")
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("nSDR of held-out songs (dB)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def data_of(args: Any) -> tuple[Any, Any]:
    """Extracts to train with, and tracks to score. Raises ValueError or FileNotFoundError where the
    songs, or the folder for the picture, are not there, or extracts are too short.
    """
    if args.segment <= SHIFT:
        raise ValueError(f"--segment is {args.segment}: it must be above {SHIFT}, the shift.")
    for option, folder in (("--data", args.data), ("--out", args.out.absolute().parent)):
        if folder and not folder.is_dir():
            raise ValueError(f"{option}: there is no folder {folder}.")
    dset: Any = partial(MusdbHQ, args.data) if args.data else partial(DemoSongs, args.songs)
    return dset(subset="training", segment=args.segment, shift=SHIFT), dset(subset="test")


def runners_of(extracts: Any, args: Any) -> list[Runner]:
    recipe = Recipe(
        batch_size=args.batch_size,
        lr=args.lr,
        clip_grad=5.0,
        shift=SHIFT,
        workers=args.workers,
        device=args.device,
    )
    kwargs = {"channels": args.channels, **SMALL}
    sides: dict[str, Any] = {
        "reference fp32": lambda: Reference(
            same_weights(partial(peer.HDemucs, SOURCES, **kwargs)), extracts, recipe
        )
    }
    for precision in ("fp32", "bf16"):
        sides[f"ours {precision}"] = partial(_ours, kwargs, extracts, recipe, precision)
    made = {name: make() for name, make in sides.items()}
    clock = time.process_time if args.clock == "process" else time.perf_counter
    return [Runner(name, each.model, each.step, args.device, clock) for name, each in made.items()]


def _ours(kwargs: Any, extracts: Any, recipe: Recipe, precision: str) -> Ours:
    model = same_weights(partial(HDemucs, SOURCES, **kwargs))
    return Ours(model, extracts, recipe, precision=precision)


def arguments(argv: list[str] | None = None) -> Any:
    parser = Parser(description="What training learns in the same time.")
    parser.add_argument("--minutes", type=positive, default=20.0, help="of each side")
    parser.add_argument("--points", type=count, default=8, help="scorings of each side")
    parser.add_argument("--turn", type=positive, default=5.0, help="seconds of a turn")
    parser.add_argument("--data", type=Path, help="layout of MUSDB18-HQ; default: demo songs")
    parser.add_argument("--songs", type=Path, default=Path("demo_songs"), help="where those are")
    parser.add_argument("--held-out", type=count, default=4, help="songs to score, at most")
    parser.add_argument("--segment", type=positive, default=2.5)
    parser.add_argument("--batch-size", type=count, default=4)
    parser.add_argument("--channels", type=count, default=12, help="width of the network")
    parser.add_argument("--lr", type=positive, default=3e-3)
    parser.add_argument("--workers", type=natural, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--clock", choices=("wall", "process"), default="wall", help="process: on a busy CPU"
    )
    parser.add_argument("--threads", type=natural, default=0, help="0: as torch chooses")
    parser.add_argument("--out", type=Path, default=Path("quality.png"), help="the picture")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    with explained():
        print(describe(args.device, peer.demucs))
        compare(args)


def compare(args: Any) -> None:
    """Prints the table, and draws the picture."""
    extracts, tracks = data_of(args)
    songs = [tracks[index] for index in range(min(args.held_out, len(tracks)))]
    runners = runners_of(extracts, args)
    print(f"nSDR of {len(songs)} held-out songs" + "".join(f"{r.name:>24}" for r in runners))
    race(runners, songs, args)
    picture(runners, args.out)
    lost = level(runners[1:], songs)
    steps = runners[1].steps
    print(f"at {steps} steps, bf16 against fp32: {lost:+.2f} dB (aim: within {AIM} dB)")


if __name__ == "__main__":
    main()
