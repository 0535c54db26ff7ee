"""Several processes that train one model: who started them, how they agree before torch connects
them, how a model is divided among them, and what Slurm is asked for.
"""

from demucs_lightning.scale.launch import Launch, current, is_first
from demucs_lightning.scale.meeting import first_of_machine, first_says, meet_again, started
from demucs_lightning.scale.slurm import requeue

__all__ = [
    "Launch",
    "current",
    "first_of_machine",
    "first_says",
    "is_first",
    "meet_again",
    "requeue",
    "started",
]
