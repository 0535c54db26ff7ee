"""Asking Slurm to start this job again."""

import logging
import os
import subprocess

from demucs_lightning.scale.launch import slurm_number

log = logging.getLogger(__name__)


def requeue() -> None:
    """Put this job back into the queue; says why where Slurm refuses."""
    command = ["scontrol", "requeue", slurm_number(os.environ)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        reason = done.stderr.strip() or f"it ended with {done.returncode}"
        failed = done.returncode != 0
    except (OSError, subprocess.TimeoutExpired) as error:
        failed, reason = True, str(error)
    if failed:
        log.warning("%s failed, submit the job again to continue: %s", " ".join(command), reason)
    else:
        log.info("Job %s is in the queue again.", command[-1])
