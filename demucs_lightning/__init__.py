"""Training, scoring and running Demucs music source separation models."""

from demucs_lightning.models import Demucs, HDemucs

__all__ = ["Demucs", "HDemucs"]
