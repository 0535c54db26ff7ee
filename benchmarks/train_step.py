"""One training step of the default models beside the reference package's, in turns.

    python benchmarks/train_step.py [--segment 2] [--batch-size 1] [--rounds 5] [--device cuda]

A step is forward, l1 loss, backward and Adam, in fp32, on the same inputs from the same weights.
Both sides of a round follow each other, so that a change in the machine's mood hits both, and take
turns at going first. Twice, because the model that is built first is a few per cent slower, by
where its weights lie; each side is built first once. Figures are medians of all rounds but the
first of each time, and the ratio is theirs.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import demucs
import torch
from demucs.demucs import Demucs as ReferenceDemucs
from demucs.hdemucs import HDemucs as ReferenceHDemucs
from demucs.htdemucs import HTDemucs as ReferenceHTDemucs
from machine import describe
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from demucs_lightning.models import Demucs, HDemucs, HTDemucs

SOURCES = ["drums", "bass", "other", "vocals"]
# The training configuration (conf/model), which differs from the constructors in these.
MODELS = {
    "Demucs": (Demucs, ReferenceDemucs, {"normalize": False}),
    "HDemucs": (HDemucs, ReferenceHDemucs, {"dconv_init": 1e-3}),
    "HTDemucs": (HTDemucs, ReferenceHTDemucs, {}),
}


def training_step(model: nn.Module, mixture: Tensor, stems: Tensor) -> Callable[[], float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.l1_loss(model(mixture), stems)
        loss.backward()
        optimizer.step()
        return loss.item()  # waits for the device

    return step


def in_turns(
    steps: list[Callable[[], float]], rounds: int
) -> tuple[list[list[float]], list[float]]:
    """Seconds and last loss of every step; the first round warms up, and every second one goes the
    other way round."""
    seconds: list[list[float]] = [[] for _ in steps]
    losses = [0.0 for _ in steps]
    for number in range(rounds + 1):
        order = range(len(steps)) if number % 2 else reversed(range(len(steps)))
        for index in order:
            start = time.perf_counter()
            losses[index] = steps[index]()
            seconds[index].append(time.perf_counter() - start)
    return [each[1:] for each in seconds], losses


def compare(name: str, args: argparse.Namespace) -> str:
    own_class, reference_class, kwargs = MODELS[name]
    length = int(args.segment * 44100)
    stems = torch.randn(args.batch_size, len(SOURCES), 2, length, device=args.device)
    mixture = stems.sum(1)
    seconds: dict[type, list[float]] = {own_class: [], reference_class: []}
    losses: dict[type, float] = {}
    for classes in ((own_class, reference_class), (reference_class, own_class)):
        models = []
        for klass in classes:  # the same seed gives both the same weights
            torch.manual_seed(0)
            models.append(klass(SOURCES, **kwargs).to(args.device))
        took, ends = in_turns([training_step(m, mixture, stems) for m in models], args.rounds)
        for klass, times, loss in zip(classes, took, ends, strict=True):
            seconds[klass] += times
            losses[klass] = loss
    with FlopCounterMode(display=False) as counter:
        F.l1_loss(models[1](mixture), stems).backward()
    ours, theirs = (statistics.median(seconds[klass]) for klass in (own_class, reference_class))
    rate = counter.get_total_flops() / ours / 1e9
    return (
        f"{name:<8}  {ours:6.3f} s a step, reference {theirs:6.3f} s, ratio {theirs / ours:.2f}; "
        f"{rate:.0f} GFLOP/s; losses after {args.rounds + 1} steps {losses[own_class]:.5f} and "
        f"{losses[reference_class]:.5f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="One training step beside the reference's.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--segment", type=float, default=2.0, help="seconds of an example")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(describe(args.device, demucs))
    print(f"examples  batches of {args.batch_size} x {args.segment} s stereo, fp32, {args.device}")
    for name in args.models:
        print(compare(name, args), flush=True)


if __name__ == "__main__":
    main()
