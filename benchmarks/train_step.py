"""Training steps beside the reference package's, in turns: speed, memory, and how long 360 epochs
take.

    python benchmarks/train_step.py [--models HDemucs] [--batch-size 4] [--rounds 5] [--device cuda]
    python benchmarks/train_step.py --segment 2.2 --batch-size 1 --workers 0        (on a small CPU)
    python benchmarks/train_step.py --table          (on a GPU: peak memory of five command lines)

A step is everything that training does for it: reading extracts, augmentation, forward, loss,
backward, optimizer (see recipes.py). This project's steps run with every setting of `memory`, in
fp32 and in bf16, eager and as `--compile` says; the reference's classes run in the reference's
recipe, in fp32. All start from the same weights and read the same songs of noise. Each side has a
process of its own, in which it finds memory as a run would. The sides of a round follow each other,
and every second round goes the other way round. The first step of a turn is not counted. Figures
are medians.

Memory is what a side takes at most, from its weights to its second step: peak of torch's
allocations on a GPU, growth of the process on a CPU. Utilisation is the floating-point operations
of the reference's forward and backward pass, nothing that is computed again, in a second, over what
a large matrix product reaches in the same precision. 360 epochs are of 18,368 extracts.
"""

import gc
import inspect
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import peer
import torch
from aside import Aside
from machine import describe
from recipes import SAMPLERATE, SOURCES, Ours, Recipe, Reference, noise_songs, same_weights
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from demucs_lightning.allocator import return_freed_memory
from demucs_lightning.commands.explain import explained
from demucs_lightning.commands.options import Parser, count, natural, positive
from demucs_lightning.compiled import MAKERS
from demucs_lightning.data import MusdbHQ
from demucs_lightning.models import Demucs, HDemucs, HTDemucs

# The training configuration (conf/model), which differs from the constructors in these.
MODELS: dict[str, Any] = {
    "Demucs": (Demucs, peer.Demucs, {"normalize": False}),
    "HDemucs": (HDemucs, peer.HDemucs, {"dconv_init": 1e-3}),
    "HTDemucs": (HTDemucs, peer.HTDemucs, {}),
}
MEMORY = ("fast", "balanced", "low")
PRECISIONS = ("fp32", "bf16")
EXTRACTS, EPOCHS = 18_368, 360
TABLE = (  # of the project's first issue, with the peak in MB that was published for it
    ("model=Demucs", 16_885),
    ("model=HDemucs", 19_199),
    ("batch_size=2 augment.remix.group_size=2 model=Demucs", 10_851),
    ("batch_size=1 data_augmentation=False model=Demucs", 7_703),
    ("batch_size=1 data_augmentation=False segment=6 model=Demucs", 6_175),
    ("experiment=low_memory model=HDemucs", None),
)
COMPILED = {None: "", "true": " compiled", "cudagraphs": " cudagraphs"}
MIB = 2**20
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}


def memory_settings() -> tuple[str, ...]:
    known = "memory" in inspect.signature(Demucs).parameters
    return MEMORY if known else ("fast",)


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


class Peak:
    """Bytes that something adds at most, from ``start`` to ``read``."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            return_freed_memory()  # which a side would take instead of more
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
            self.before = _resident("VmRSS")

    def read(self) -> int:
        after = torch.cuda.max_memory_allocated() if self.cuda else _resident("VmHWM")
        return after - self.before


def _resident(name: str) -> int:
    (size,) = re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(size) * 1024


def in_turns(turns: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of each turn's seconds; every second round goes the other way round."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds):
        for name in list(turns) if number % 2 else reversed(list(turns)):
            seconds[name].append(turns[name]())
    return {name: statistics.median(times) for name, times in seconds.items()}


def turn(side: Any, device: str, repeats: int, clock: str) -> float:
    """Seconds of a step of a side: the mean of so many, after one that is not counted. Then the
    memory is the next side's.
    """
    with side.keeping():
        side.step()
        wait(device)
        start = CLOCKS[clock]()
        for _ in range(repeats):
            side.step()
        wait(device)
        took = CLOCKS[clock]() - start
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    return took / repeats


def matmul_rate(
    precision: str, device: str, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Floating-point operations a second of a large matrix product, the best of ten."""
    size = 8192 if device.startswith("cuda") else 1536
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    torch.set_float32_matmul_precision("high" if device.startswith("cuda") else "highest")
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        wait(device)
        start = clock()
        left @ right
        wait(device)
        best = min(best, clock() - start)
    return 2 * size**3 / best


def operations(side: Any, recipe: Recipe, segment: float) -> int:
    """Of forward and backward of a side's model for one example."""
    length = int((segment - recipe.shift) * SAMPLERATE)
    mixture = torch.randn(1, 2, length, device=recipe.device)
    with FlopCounterMode(display=False) as counter:
        F.l1_loss(
            side.model(mixture), torch.zeros(1, len(SOURCES), 2, length, device=recipe.device)
        ).backward()
    side.model.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def sides(name: str, extracts: Any, recipe: Recipe, args: Any) -> Iterator[tuple[str, Any]]:
    """Name and maker of the reference's side, and of each of this project's."""
    own, reference, kwargs = MODELS[name]
    yield (
        "reference fp32",
        partial(_theirs, partial(reference, SOURCES, **kwargs), extracts, recipe),
    )
    for memory in args.memory:
        extra = {"memory": memory} if len(memory_settings()) > 1 else {}
        build = partial(own, SOURCES, **kwargs, **extra)
        for precision in args.precisions:
            for kind in (None, *args.compile):
                label = f"{memory} {precision}{COMPILED[kind]}"
                yield label, partial(_ours, build, extracts, recipe, precision, kind)


def _theirs(build: Any, extracts: Any, recipe: Recipe) -> Reference:
    return Reference(same_weights(build), extracts, recipe)


def _ours(build: Any, extracts: Any, recipe: Recipe, precision: str, kind: str | None) -> Ours:
    return Ours(same_weights(build), extracts, recipe, precision=precision, compile=kind)


def begun(make: Callable[[], Any], device: str, threads: int) -> Any:
    """A side that has made two steps, the second with the optimizer's state, and its ``peak``: the
    most memory that it has taken, its weights among it.
    """
    torch.set_num_threads(threads)
    peak = Peak(device)
    side = make()
    with side.keeping():
        side.step()
        side.step()
        wait(device)
        side.peak = peak.read()
    return side


def compare(name: str, extracts: Any, recipe: Recipe, args: Any) -> list[str]:
    """A line for each side of a model."""
    how = recipe.device, args.repeats, args.clock
    peaks: dict[str, int] = {}
    turns: dict[str, Callable[[], float]] = {}
    work = 0  # of the reference's step
    with ExitStack() as processes:
        for label, make in sides(name, extracts, recipe, args):
            aside = Aside(begun, make, recipe.device, torch.get_num_threads())
            try:
                side = processes.enter_context(aside)
            except Exception as error:
                error.add_note(f"This was {name}, {label}.")
                raise
            peaks[label] = side.ask(getattr, "peak")
            turns[label] = partial(side.ask, turn, *how)
            if not work:
                work = side.ask(operations, recipe, args.segment) * recipe.batch_size
        seconds = in_turns(turns, args.rounds)
    rates = {each: matmul_rate(each, recipe.device, CLOCKS[args.clock]) for each in PRECISIONS}
    slowest, lines = seconds["reference fp32"], []
    for label, took in seconds.items():
        rate = rates["bf16" if "bf16" in label else "fp32"]
        days = EPOCHS * (EXTRACTS // recipe.batch_size) * took / 86_400
        lines.append(
            f"{name:<9}{label:<23}{1 / took:8.3f} steps/s  {slowest / took:5.2f}x  "
            f"{peaks[label] / MIB:7.0f} MiB  {work / took / rate:5.1%}  {days:7.2f} days"
        )
    return lines


def comparison(args: Any) -> Iterator[str]:
    # A short extract is not to lose all of itself to the shift.
    shift = min(1.0, args.segment / 11)
    recipe = Recipe(
        batch_size=args.batch_size, shift=shift, workers=args.workers, device=args.device
    )
    yield f"batches   {args.batch_size} x {args.segment} s stereo, {args.device}"
    yield f"{'':32}{'speed':>16}   ratio  peak memory  MFU  {EPOCHS} epochs"
    with noise_songs() as root:
        extracts = MusdbHQ(root, segment=args.segment, shift=1)
        for name in args.models:
            yield from compare(name, extracts, recipe, args)


def table(args: Any) -> Iterator[str]:
    """Peak memory of the published command lines, each a run of train.py of a few steps."""
    from demucs_lightning.commands import settings
    from demucs_lightning.commands import train as training

    with noise_songs() as root, tempfile.TemporaryDirectory() as folder:
        short = [
            *(f"data_root={root}", "epochs=1", f"trainer.limit_train_batches={args.rounds + 3}"),
            *("trainer.limit_val_batches=0", "trainer.limit_test_batches=0", "logger=csv"),
            *("trainer.enable_progress_bar=false", "checkpoint.every_n_minutes=0"),
            *args.override,
        ]
        for line, published in TABLE:
            for memory in args.memory:
                words = [*line.split(), *short, "trainer.precision=bf16", f"memory={memory}"]
                cfg = settings.compose(words)
                print(f"{line} memory={memory} ...", file=sys.stderr, flush=True)
                peak = Peak(args.device)
                start = time.perf_counter()
                training.run(cfg, Path(folder) / "run")
                took = time.perf_counter() - start
                beside = f", published {published:,} MB" if published else ""
                yield (
                    f"{line} memory={memory}: peak {peak.read() / MIB:,.0f} MiB{beside} "
                    f"({took:.0f} s in all)"
                )
                shutil.rmtree(Path(folder) / "run")
                gc.collect()


def arguments(argv: list[str] | None = None) -> Any:
    parser = Parser(description="Training steps beside the reference's.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--memory", nargs="+", choices=MEMORY, default=list(memory_settings()))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument(
        "--compile", nargs="*", choices=MAKERS, default=[], help="as the setting compile, too"
    )
    parser.add_argument("--segment", type=positive, default=11.0, help="seconds of an extract")
    parser.add_argument("--batch-size", type=count, default=4)
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument(
        "--repeats", type=natural, default=0, help="steps of a turn; 0: 10 on a GPU, 1 on a CPU"
    )
    parser.add_argument("--workers", type=natural, default=2, help="that read, on either side")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="process: on a busy CPU, with --workers 0"
    )
    parser.add_argument("--threads", type=natural, default=0, help="0: as torch chooses")
    parser.add_argument("--table", action="store_true", help="peak memory of train.py")
    parser.add_argument("--override", nargs="*", default=[], help="settings of --table's runs")
    args = parser.parse_args(argv)
    # Ten are more than either side reads ahead while it is not its turn.
    args.repeats = args.repeats or (10 if args.device.startswith("cuda") else 1)
    return args


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    with explained():
        print(describe(args.device, peer.demucs))
        for line in table(args) if args.table else comparison(args):
            print(line, flush=True)


if __name__ == "__main__":
    main()
