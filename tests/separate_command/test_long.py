"""Long tracks in little memory."""

import subprocess
import sys
from pathlib import Path

from demucs_lightning import audio
from tests.separator.models import RATE, noise

ROOT = Path(__file__).parents[2]


LONG = """
import sys
import torch
from demucs_lightning import Separator
from tests.memory import peak
from tests.separator.models import Shares, noise
torch.set_num_threads(1)
separator = Separator(Shares((0.6, 3.0), ["a", "b"]), device="cpu", segment=10)
before = peak()
report = separator.separate_to(sys.argv[1], sys.argv[2], exact_sum=True)
after = peak()
print(after - before, report.seconds)
"""


def test_half_an_hour_in_little_memory(tmp_path):
    minute = noise(2, 60 * RATE).clamp(-1, 1)
    with audio.writer(tmp_path / "x.wav", samplerate=RATE, channels=2) as writer:
        for _ in range(30):
            writer.write(minute)
    command = [sys.executable, "-c", LONG, tmp_path / "x.wav", tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    grown, seconds = done.stdout.split()
    assert float(seconds) == 1800
    # Kilobytes; the mixture and its two stems are 350,000.
    assert int(grown) < 175_000
    assert {path.name for path in (tmp_path / "out/x").iterdir()} == {"a.wav", "b.wav"}
