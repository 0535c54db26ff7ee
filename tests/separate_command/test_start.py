"""The command starts quickly: it loads what it needs."""

import subprocess
import sys
from pathlib import Path

LOADED = """
import sys
import demucs_lightning.commands.separate
print(*sys.modules)
"""
# Each takes from half a second to two seconds, and is for training or for scores.
SLOW = {"lightning", "hydra", "omegaconf", "scipy", "torchmetrics", "torch._dynamo", "matplotlib"}


def test_nothing_is_loaded_that_only_training_needs():
    command = [sys.executable, "-c", LOADED]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert not SLOW & {*done.stdout.split()}
