"""What is said where Slurm does not put a job back."""

import logging
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from demucs_lightning.scale import requeue

AGAIN = "Job 4242 is not in the queue again, submit it to continue: "


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (SimpleNamespace(returncode=0, stderr=""), "Job 4242 is in the queue again."),
        (
            SimpleNamespace(returncode=1, stderr="slurm_requeue error:\n Access denied.\n"),
            f"{AGAIN}slurm_requeue error: Access denied.",
        ),
        (SimpleNamespace(returncode=3, stderr=""), f"{AGAIN}scontrol ended with status 3."),
        (
            FileNotFoundError(2, "No such file or directory", "scontrol"),
            f"{AGAIN}the command scontrol is not on this machine.",
        ),
        (
            PermissionError(13, "Permission denied", "scontrol"),
            f"{AGAIN}the command scontrol can't be run (Permission denied).",
        ),
        (
            subprocess.TimeoutExpired("scontrol", 60),
            f"{AGAIN}scontrol did not answer in 60 seconds.",
        ),
    ],
)
def test_requeue_says_what_happened(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, answer: Any, said: str
) -> None:
    asked = []

    def run(command: list[str], **_: Any) -> Any:
        asked.append(command)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setenv("SLURM_JOB_ID", "4242")
    monkeypatch.setattr(subprocess, "run", run)
    caplog.set_level(logging.INFO)
    requeue()
    assert asked == [["scontrol", "requeue", "4242"]]
    assert caplog.messages == [said]
