"""Asking Slurm to start this job again."""

import logging
import os
import subprocess

from demucs_lightning.scale.launch import slurm_number

log = logging.getLogger(__name__)

TIMEOUT = 60.0  # seconds


def requeue() -> None:
    """Put this job back into the queue; says why where Slurm refuses."""
    job = slurm_number(os.environ)
    if reason := _refusal(["scontrol", "requeue", job]):
        log.warning("Job %s is not in the queue again, submit it to continue: %s.", job, reason)
    else:
        log.info("Job %s is in the queue again.", job)


def _refusal(command: list[str]) -> str:
    """Why the command did not do what it is for; empty where it did."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    except FileNotFoundError:
        return f"the command {command[0]} is not on this machine"
    except OSError as error:
        return f"the command {command[0]} can't be run ({error.strerror})"
    except subprocess.TimeoutExpired:
        return f"{command[0]} did not answer in {TIMEOUT:g} seconds"
    if done.returncode == 0:
        return ""
    said = " ".join(done.stderr.split()).rstrip(".")
    return said or f"{command[0]} ended with status {done.returncode}"
