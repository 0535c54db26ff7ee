"""The memory that separating a very long file takes, and the time that all but the model takes.

    python benchmarks/long_file.py [--hours 4] [--depth FLOAT] [--folder /tmp]

Makes a stereo file at 44.1 kHz, separates it into two stems with a stand-in that costs nothing, in
a process of its own, and prints the peak of its resident memory and the rate. Takes 1.3 GB of disk
an hour for the stems at PCM_16, and half as much again for the file.
"""

import math
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
from machine import describe
from torch import Tensor, nn

from demucs_lightning import Separator, audio
from demucs_lightning.commands.options import Parser, positive
from demucs_lightning.separator import Target

RATE = 44_100


class StandIn(nn.Module):
    """Two stems: a part of the mixture, and the rest."""

    sources, audio_channels, samplerate = ["part", "rest"], 2, RATE
    segment, max_segment = 10.0, math.inf

    def valid_length(self, length: int) -> int:
        return length

    def forward(self, mixture: Tensor) -> Tensor:
        return torch.stack([0.25 * mixture, 0.75 * mixture], dim=1)


def make(path: Path, hours: float) -> None:
    minute = 0.1 * torch.randn(2, 60 * RATE)
    with audio.writer(path, samplerate=RATE, channels=2) as writer:
        for _ in range(round(60 * hours)):
            writer.write(minute)


def resident() -> float:
    """The peak of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = Parser(description="Memory and time of a very long file.")
    parser.add_argument("--hours", type=positive, default=4.0)
    parser.add_argument("--depth", default="FLOAT", choices=["PCM_16", "PCM_24", "FLOAT"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    if not args.folder.is_dir():
        sys.exit(f"error: --folder: there is no folder {args.folder}.")
    print(describe("cpu"))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        make(Path(folder, "song.wav"), args.hours)
        before, start = resident(), time.monotonic()
        separator = Separator(StandIn(), device="cpu")
        target = Target(subtype=args.depth)
        report = separator.separate_to(Path(folder, "song.wav"), folder, target=target)
        elapsed, stem = time.monotonic() - start, report.files["part"]
        with stem.open("rb") as file:
            kind = file.read(4).decode()
        print(
            f"{args.hours:g} h stereo, two stems in {args.depth} ({kind}, "
            f"{stem.stat().st_size / 2**30:.2f} GiB each): peak resident {resident():.0f} MiB, "
            f"{resident() - before:.0f} more than before; "
            f"{report.seconds / elapsed:.0f} x real time"
        )


if __name__ == "__main__":
    main()
