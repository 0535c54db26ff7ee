"""Separation beside the reference package's, in turns, at the full default sizes.

    python benchmarks/separate.py [--models HDemucs] [--seconds 48] [--rounds 3] [--command]
                                  [--batch-size 1] [--gains loud] [--weights FILE]

Both sides have the same weights and the same file: a real recording, over and over. No shifts, an
overlap of a quarter, and segments of at most 10 s, for which this machine has the memory. A round
is one separation by each side: this project in fp32, in bf16, and the reference's ``apply_model``,
in a process of its own; whoever goes first changes. Figures are medians of all rounds, ratios are
theirs; SDR is that of the output against the reference's in fp32. ``--command`` adds the two
commands, from file to files: processes, start, reading and writing included, in one round less.
``--batch-size`` is this project's; the reference takes chunk after chunk.

Weights are random, and what bf16 leaves of the output depends on them: on the gains of the
residual branches (``LayerScale``) above all, since these carry rounding from layer to layer.
``--gains`` says what they are:

    initial  as initialised, 1e-4 and less: branches are nearly silent, 45 to 50 dB
    trained  drawn from 0 to 0.2, the default: 44 to 48 dB
    loud     drawn from 0.2 to 0.8, so that no error hides: 22 to 40 dB

The small network of ``make demo``, which is trained for minutes, is at 45.9 dB, and no proof for
networks that trained for weeks. For these there is ``--weights FILE``, of a single model such as
955717e8-8726e21a.th: both sides load it. Time does not depend on the weights.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import peer
import torch
from aside import Aside
from machine import describe
from torch import Tensor

from demucs_lightning import Separator, audio, pretrained
from demucs_lightning.commands.explain import explained
from demucs_lightning.commands.options import Parser, count, natural, positive
from demucs_lightning.models import Demucs, HDemucs, HTDemucs
from demucs_lightning.pretrained import Package

SOURCES = ["drums", "bass", "other", "vocals"]
RATE = 44_100
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "Demucs": (Demucs, peer.Demucs, {"normalize": True, "segment": 10}),
    "HDemucs": (HDemucs, peer.HDemucs, {"segment": 10}),
    "HTDemucs": (HTDemucs, peer.HTDemucs, {"segment": 7.8}),
}
GAINS = {"initial": None, "trained": (0.0, 0.2), "loud": (0.2, 0.8)}
LONGEST = 10.0  # seconds of a chunk


def recording(seconds: float) -> Tensor:
    """The real four-stem recording of the package stempeg, (2, T), as often as it takes."""
    spec = find_spec("stempeg")
    assert spec is not None
    assert spec.origin is not None
    path = min(Path(spec.origin).parent.glob("data/*.stem.mp4"))
    once, rate = audio.read(path)
    length = round(seconds * RATE)
    return audio.resample(once, old=rate, new=RATE).repeat(1, length // once.shape[1] + 1)[
        :, :length
    ]


def random_package(name: str, gains: str) -> Package:
    """Weights as a network of that class is initialised, with ``GAINS`` for its branches."""
    kwargs = {"sources": SOURCES, **MODELS[name][2]}
    torch.manual_seed(0)
    reference = MODELS[name][1](**kwargs)
    between = GAINS[gains]
    with torch.no_grad():
        for key, value in reference.named_parameters():
            if between is not None and key.endswith(".scale"):
                value.uniform_(*between)
    return Package(name, kwargs, reference.state_dict(), name)


def loaded(klass: Any, package: Package) -> Any:
    """A model of this class with the weights of the package."""
    model = klass(**package.kwargs)
    model.load_state_dict(package.state)
    model.eval()
    if model.segment > LONGEST and not isinstance(model, HTDemucs | peer.HTDemucs):
        model.segment = LONGEST
    return model


def in_turns(
    sides: dict[str, Callable[[], tuple[float, Any]]], rounds: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of each side, and what it returned last: all return both."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    results: dict[str, Any] = {}
    for number in range(rounds):
        for name in list(sides) if number % 2 else reversed(list(sides)):
            took, results[name] = sides[name]()
            seconds[name].append(took)
    return {name: statistics.median(each) for name, each in seconds.items()}, results


def sdr(estimate: Tensor, reference: Tensor) -> float:
    return float(10 * torch.log10(reference.square().sum() / (reference - estimate).square().sum()))


def by_this_project(
    package: Package, mixture: Tensor, batch_size: int | None, threads: int
) -> dict[str, Callable[[], Tensor]]:
    torch.set_num_threads(threads)
    model = loaded(MODELS[package.klass][0], package)

    def run(separator: Separator) -> Tensor:
        return torch.stack(list(separator.separate(mixture, RATE).values()))

    settings: Any = {"device": DEVICE, "shifts": 0, "batch_size": batch_size}
    return {
        precision: partial(run, Separator(model, precision=precision, **settings))
        for precision in ("fp32", "bf16")
    }


def by_the_reference(
    package: Package, mixture: Tensor, threads: int
) -> dict[str, Callable[[], Tensor]]:
    torch.set_num_threads(threads)
    model = loaded(MODELS[package.klass][1], package)

    def run() -> Tensor:
        mono = mixture.mean(0)
        mean, std = mono.mean(), mono.std()
        normed = ((mixture - mean) / std)[None]
        with torch.no_grad():
            return peer.apply_model(model, normed, shifts=0, device=DEVICE)[0].cpu() * std + mean

    return {"reference": run}


def timed(runs: dict[str, Callable[[], Any]], name: str) -> tuple[float, Any]:
    start = time.perf_counter()
    result = runs[name]()
    return time.perf_counter() - start, result


def compare(package: Package, mixture: Tensor, rounds: int, batch_size: int | None) -> str:
    threads = torch.get_num_threads()
    with (
        Aside(by_this_project, package, mixture, batch_size, threads) as own,
        Aside(by_the_reference, package, mixture, threads) as reference,
    ):
        places = {"fp32": own, "bf16": own, "reference": reference}
        sides = {name: partial(place.ask, timed, name) for name, place in places.items()}
        took, outputs = in_turns(sides, rounds)
    length, theirs = mixture.shape[1] / RATE, took["reference"]
    quality = {side: sdr(outputs[side], outputs["reference"]) for side in ("fp32", "bf16")}
    return f"{package.klass:<10}reference {length / theirs:5.2f} x real time" + "".join(
        f" · {side} {length / took[side]:5.2f}, ratio {theirs / took[side]:.2f}, "
        f"SDR {quality[side]:.0f} dB"
        for side in quality
    )


def compare_commands(package: Package, mixture: Tensor, rounds: int, batch_size: int | None) -> str:
    """The command of each side, on one file, with the same weights."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        pretrained.write(package, Path("model.th"), half=False)
        audio.write("song.wav", mixture, samplerate=RATE, subtype="FLOAT")
        options = ["--repo", ".", "-n", "model", "--shifts", "0", "--float32", "song.wav"]
        options += ["-d", DEVICE]
        start = "from demucs_lightning.commands import main; main()"
        own = [sys.executable, "-c", start, "separate", *options]
        own += [] if batch_size is None else ["--batch-size", str(batch_size)]
        sides = {
            "fp32": [*own, "-o", "own", "--overwrite", "--precision", "fp32"],
            "bf16": [*own, "-o", "own", "--overwrite", "--precision", "bf16"],
            "reference": [sys.executable, "-m", "demucs", *options, "-o", "reference"],
        }
        paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])

        def command(words: list[str]) -> Any:
            environment = {**os.environ, "PYTHONPATH": paths}
            return subprocess.run(
                words, check=True, capture_output=True, timeout=3600, env=environment
            )

        runs = {side: partial(command, words) for side, words in sides.items()}
        took, _ = in_turns({side: partial(timed, runs, side) for side in runs}, rounds)
    theirs = took["reference"]
    return f"{package.klass:<10}command: reference {theirs:5.1f} s" + "".join(
        f" · {side} {took[side]:5.1f} s, ratio {theirs / took[side]:.2f}"
        for side in ("fp32", "bf16")
    )


def main() -> None:
    parser = Parser(description="Separation beside the reference's.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seconds", type=positive, default=48.0, help="length of the recording")
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--threads", type=natural, default=0, help="0: as torch chooses")
    parser.add_argument("--command", action="store_true", help="the commands too")
    parser.add_argument("--batch-size", type=count, help="chunks at once; default: as it suits")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--gains", choices=GAINS, default="trained", help="of random weights")
    weights.add_argument("--weights", type=Path, help="those of a model, in place of --models")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(describe(DEVICE, peer.demucs))
    mixture = recording(args.seconds)
    what = str(args.weights) if args.weights else f"random weights, {args.gains} gains"
    print(f"recording {args.seconds:g} s stereo, {DEVICE}, {what}")
    with explained():
        given = [pretrained.read(args.weights)] if args.weights else []
    for package in given or (random_package(name, args.gains) for name in args.models):
        print(compare(package, mixture, args.rounds, args.batch_size), flush=True)
        if args.command:
            rounds = max(1, args.rounds - 1)
            print(compare_commands(package, mixture, rounds, args.batch_size), flush=True)


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if __name__ == "__main__":
    main()
