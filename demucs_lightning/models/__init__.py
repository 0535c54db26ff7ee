"""Source separation networks, on torch alone.

Every model follows one protocol, so that any ``torch.nn.Module`` that does too can be trained and
run:

- ``forward(mixture (B, C, T)) -> estimates (B, S, C, T)``, which changes no attribute;
- ``sources``, the names of the S stems; ``audio_channels``, C; ``samplerate`` in Hz;
- ``segment``, the length in seconds that separation cuts a track into, and ``max_segment``, that of
  the longest input it takes, ``math.inf`` for any;
- ``valid_length(length)``, the least number of samples, at least ``length``, that the network likes
  best.

Axes, in this package and beyond: **B** batch, **S** sources, **C** audio channels, **T** samples
(inside a network: time steps), **F** frequency bins, **N** STFT frames, **H** hidden channels,
**D** transformer width.
"""

from fractions import Fraction
from typing import Protocol, runtime_checkable

from torch import Tensor

from demucs_lightning.models.demucs import Demucs
from demucs_lightning.models.hdemucs import HDemucs
from demucs_lightning.models.htdemucs import HTDemucs

__all__ = ["Demucs", "HDemucs", "HTDemucs", "SeparationModel"]


@runtime_checkable
class SeparationModel(Protocol):
    """What training and separation ask of a model."""

    sources: list[str]
    audio_channels: int
    samplerate: int

    @property
    def segment(self) -> float | Fraction: ...

    @property
    def max_segment(self) -> float | Fraction: ...

    def valid_length(self, length: int) -> int: ...

    def __call__(self, mixture: Tensor) -> Tensor: ...
