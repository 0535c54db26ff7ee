"""BSS Eval v4 of a whole track beside museval: seconds and peak memory of each.

    python benchmarks/metrics.py [--seconds 180] [--longer 540] [--threads 2]

The track has four stereo stems at 44.1 kHz: the real recording of stempeg again and again, at
changing levels, and estimates with leakage, a wrong filter and noise. Each side scores it in a
process of its own, which reads it from the same file; time is from the first read to the scores,
memory is the peak of the whole process. This project scores a longer one too, to show that its
memory stays. museval's metrics.py is used without its package, whose import asks for ffmpeg.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe
from torch import Tensor

from demucs_lightning import audio
from demucs_lightning.commands.options import Parser, count, positive
from demucs_lightning.metrics import bss_eval_streamed

RATE, SOURCES, CHANNELS = 44100, 4, 2
SHAPE = (2, SOURCES, CHANNELS)  # of one sample: references and estimates
FRAME_BYTES = 4 * int(np.prod(SHAPE))
METRICS = ["SDR", "ISR", "SIR", "SAR"]


def write_track(path: Path, seconds: float) -> None:
    """Float32 samples (T, 2, S, C), the recording's length at a time."""
    spec = find_spec("stempeg")
    assert spec is not None
    assert spec.origin is not None
    song = next((Path(spec.origin).parent / "data").glob("*.stem.mp4"))
    stems = torch.stack([audio.read(song, stream=index)[0] for index in range(1, 1 + SOURCES)])
    generator = torch.Generator().manual_seed(0)
    remaining = int(seconds * RATE)
    with path.open("wb") as file:
        while remaining:
            references = stems * (0.3 + torch.rand(SOURCES, 1, 1, generator=generator))
            noise = 0.01 * torch.randn(stems.shape, generator=generator)
            leaking = 0.1 * references.roll(1, 0) + 0.1 * references.roll(3, -1)
            both = torch.stack([references, 0.8 * references + leaking + noise])
            samples = both.movedim(-1, 0)[:remaining].contiguous().numpy()
            file.write(samples.tobytes())
            remaining -= len(samples)


def by_this_project(path: Path) -> np.ndarray:
    def read(start: int, stop: int) -> tuple[Tensor, Tensor]:
        count = (stop - start) * int(np.prod(SHAPE))
        samples = np.fromfile(path, np.float32, count=count, offset=start * FRAME_BYTES)
        references, estimates = torch.from_numpy(samples).view(-1, *SHAPE).movedim(0, -1)
        return references, estimates

    scores = bss_eval_streamed(read, path.stat().st_size // FRAME_BYTES, window=RATE)
    return torch.stack(scores).numpy()


def by_museval(path: Path) -> np.ndarray:
    found = find_spec("museval")
    assert found is not None
    assert found.origin is not None
    spec = spec_from_file_location("museval_metrics", Path(found.origin).with_name("metrics.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    samples = np.fromfile(path, np.float32).reshape(-1, *SHAPE)
    references, estimates = samples.transpose(1, 2, 0, 3).astype(np.float64)
    del samples
    return np.stack(module.bss_eval(references, estimates, window=RATE, hop=RATE)[:4])


SIDES = {"ours": by_this_project, "museval": by_museval}


def peak_bytes() -> int:
    """Of this process since it started, not of the one that started it."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def measure(side: str, path: Path, threads: int) -> None:
    """What the process of one side does: the scores beside the track, the figures printed."""
    torch.set_num_threads(threads)
    start, cpu, before = time.perf_counter(), time.process_time(), peak_bytes()
    scores = SIDES[side](path)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    np.save(path.with_suffix(f".{side}.npy"), scores)
    print(json.dumps({"s": seconds, "cpu": cpu, "peak": peak_bytes(), "before": before}))


def run(side: str, path: Path, threads: int) -> dict[str, Any]:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    settings = {**dict.fromkeys(names, str(threads)), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, __file__, "--side", side, "--track", str(path)]
    command += ["--threads", str(threads)]
    done = subprocess.run(
        command, env={**os.environ, **settings}, stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def report(side: str, seconds: float, figures: dict[str, float]) -> str:
    return (
        f"{side:<8}  {seconds:4.0f} s of audio in {figures['s']:6.2f} s, {figures['cpu']:6.2f} s "
        f"of processors; peak {figures['peak'] / 2**20:5.0f} MiB, of them "
        f"{figures['before'] / 2**20:.0f} before it starts"
    )


def compare(path: Path) -> str:
    ours, theirs = (np.load(path.with_suffix(f".{side}.npy")) for side in ("ours", "museval"))
    differences = np.nanmax(np.abs(ours - theirs), axis=(1, 2))
    alike = bool((np.isnan(ours) == np.isnan(theirs)).all())
    largest = ", ".join(f"{m} {d:.1e}" for m, d in zip(METRICS, differences, strict=True))
    return (
        f"alike     {ours.shape[-1]} windows, NaN in the same places: {alike}; largest difference, "
        f"dB: {largest}"
    )


def main() -> None:
    parser = Parser(description="BSS Eval v4 of a track, beside museval's.")
    parser.add_argument("--seconds", type=positive, default=180.0, help="of the track for both")
    parser.add_argument(
        "--longer", type=positive, default=540.0, help="of the track for this project"
    )
    parser.add_argument("--threads", type=count, default=2)
    parser.add_argument("--side", choices=SIDES, help="measure one side (done by the benchmark)")
    parser.add_argument("--track", type=Path, help="the samples for --side")
    args = parser.parse_args()
    if args.side:
        measure(args.side, args.track, args.threads)
        return
    if find_spec("museval") is None:
        sys.exit("error: The package museval is missing: pip install --no-deps museval==0.4.1")
    torch.set_num_threads(args.threads)
    print(describe("cpu", np))
    with tempfile.TemporaryDirectory() as folder:
        track, longer = Path(folder, "track.f32"), Path(folder, "longer.f32")
        write_track(track, args.seconds)
        write_track(longer, args.longer)
        theirs = run("museval", track, args.threads)
        print(report("museval", args.seconds, theirs), flush=True)
        ours = run("ours", track, args.threads)
        print(report("ours", args.seconds, ours))
        print(report("ours", args.longer, run("ours", longer, args.threads)))
        print(compare(track))
    print(
        f"ratio     {theirs['s'] / ours['s']:.1f} times as fast, {theirs['cpu'] / ours['cpu']:.1f} "
        f"by processor time, {theirs['peak'] / ours['peak']:.1f} times less memory"
    )


if __name__ == "__main__":
    main()
