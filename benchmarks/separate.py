"""Separation beside the reference package's, in turns, at the full default sizes.

    python benchmarks/separate.py [--models HDemucs] [--seconds 24] [--rounds 3] [--command]

Both sides have the same random weights, their residual branches turned up as training does, and
the same file: a real recording, over and over. No shifts, an overlap of a quarter, and segments of
at most 10 s, for which this machine has the memory. A round is one separation by each side:
this project in fp32, in bf16, and the reference's ``apply_model``; whoever goes first changes.
Figures are medians of all rounds but the first, ratios are theirs; SDR is that of the output
against the reference's in fp32. ``--command`` adds the two commands, from file to files: processes,
start, reading and writing included.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import demucs
import torch
from demucs.apply import apply_model
from demucs.demucs import Demucs as ReferenceDemucs
from demucs.hdemucs import HDemucs as ReferenceHDemucs
from demucs.htdemucs import HTDemucs as ReferenceHTDemucs
from machine import describe
from torch import Tensor, nn

from demucs_lightning import Separator, audio, pretrained
from demucs_lightning.models import Demucs, HDemucs, HTDemucs
from demucs_lightning.pretrained import Package

SOURCES = ["drums", "bass", "other", "vocals"]
RATE = 44_100
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "Demucs": (Demucs, ReferenceDemucs, {"normalize": True, "segment": 10}),
    "HDemucs": (HDemucs, ReferenceHDemucs, {"segment": 10}),
    "HTDemucs": (HTDemucs, ReferenceHTDemucs, {"segment": 7.8}),
}


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


def alike(name: str) -> tuple[Any, Any, Package]:
    """This project's model, the reference's, and the package that both have their weights from."""
    own_class, reference_class, kwargs = MODELS[name]
    torch.manual_seed(0)
    reference = reference_class(SOURCES, **kwargs).eval()
    with torch.no_grad():  # at their start they are 1e-4 to 1e-3, and would hide every error
        for key, value in reference.named_parameters():
            if key.endswith(".scale"):
                value.uniform_(0.2, 0.8)
    package = Package(name, {"sources": SOURCES, **kwargs}, reference.state_dict(), name)
    own = own_class(SOURCES, **kwargs)
    own.load_state_dict(reference.state_dict())
    return own.eval(), reference, package


def in_turns(
    sides: dict[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of each side, and what it returned last; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    results: dict[str, Any] = {}
    for number in range(rounds + 1):
        for name in list(sides) if number % 2 else reversed(list(sides)):
            start = time.perf_counter()
            results[name] = sides[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(each[1:]) for name, each in seconds.items()}, results


def sdr(estimate: Tensor, reference: Tensor) -> float:
    return float(10 * torch.log10(reference.square().sum() / (reference - estimate).square().sum()))


def by_this_project(model: nn.Module, mixture: Tensor, precision: str) -> Callable[[], Tensor]:
    separator = Separator(model, device=DEVICE, shifts=0, precision=precision)

    def run() -> Tensor:
        return torch.stack(list(separator.separate(mixture, RATE).values()))

    return run


def by_the_reference(model: Any, mixture: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        mono = mixture.mean(0)
        mean, std = mono.mean(), mono.std()
        normed = ((mixture - mean) / std)[None]
        with torch.no_grad():
            return apply_model(model, normed, shifts=0, device=DEVICE)[0].cpu() * std + mean

    return run


def compare(name: str, mixture: Tensor, rounds: int) -> str:
    own, reference, _ = alike(name)
    sides = {
        "fp32": by_this_project(own, mixture, "fp32"),
        "bf16": by_this_project(own, mixture, "bf16"),
        "reference": by_the_reference(reference, mixture),
    }
    took, outputs = in_turns(sides, rounds)
    length, theirs = mixture.shape[1] / RATE, took["reference"]
    quality = {side: sdr(outputs[side], outputs["reference"]) for side in ("fp32", "bf16")}
    return f"{name:<10}reference {length / theirs:5.2f} x real time" + "".join(
        f" · {side} {length / took[side]:5.2f}, ratio {theirs / took[side]:.2f}, "
        f"SDR {quality[side]:.0f} dB"
        for side in quality
    )


def compare_commands(name: str, mixture: Tensor, rounds: int) -> str:
    """The command of each side, on one file, with the same weights."""
    _, _, package = alike(name)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        pretrained.write(package, Path("model.th"), half=False)
        audio.write("song.wav", mixture, samplerate=RATE, subtype="FLOAT")
        options = ["--repo", ".", "-n", "model", "--shifts", "0", "--float32", "song.wav"]
        options += ["-d", DEVICE]
        own = [sys.executable, "-m", "demucs_lightning.commands.separate", *options]
        sides = {
            "fp32": [*own, "-o", "own", "--overwrite", "--precision", "fp32"],
            "bf16": [*own, "-o", "own", "--overwrite", "--precision", "bf16"],
            "reference": [sys.executable, "-m", "demucs", *options, "-o", "reference"],
        }
        paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])

        def command(words: list[str]) -> Callable[[], Any]:
            environment = {**os.environ, "PYTHONPATH": paths}
            return lambda: subprocess.run(
                words, check=True, capture_output=True, timeout=3600, env=environment
            )

        took, _ = in_turns({side: command(words) for side, words in sides.items()}, rounds)
    theirs = took["reference"]
    return f"{name:<10}command: reference {theirs:5.1f} s" + "".join(
        f" · {side} {took[side]:5.1f} s, ratio {theirs / took[side]:.2f}"
        for side in ("fp32", "bf16")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Separation beside the reference's.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=24.0, help="length of the recording")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    parser.add_argument("--command", action="store_true", help="the commands too")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(describe(DEVICE, demucs))
    mixture = recording(args.seconds)
    print(f"recording {args.seconds:g} s stereo, {DEVICE}")
    for name in args.models:
        print(compare(name, mixture, args.rounds), flush=True)
        if args.command:
            print(compare_commands(name, mixture, args.rounds), flush=True)


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if __name__ == "__main__":
    main()
