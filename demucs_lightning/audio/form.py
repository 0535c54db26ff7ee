"""What an audio stream holds, and whether that can be."""

import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

# Beyond these a header is damaged: a rate of 1 Hz would make a second of audio out of one sample.
RATES = (100, 1_000_000)
MAX_CHANNELS = 64
# Of full scale. Whole numbers of 32 bits, which nobody has scaled, stay below it; what is above is
# damage, and from 1e37 on sums of it are infinite.
LOUDEST = 1e10


@dataclass(frozen=True)
class AudioInfo:
    """What a stream holds; `frames` counts samples per channel, and is a guess unless `exact`.

    `subtype` is PCM_16, PCM_24, PCM_32, FLOAT, ... where samples have a depth (FLAC and ALAC too),
    or else the name of the codec: mp3, aac, vorbis, opus, ...
    """

    samplerate: int
    channels: int
    frames: int
    subtype: str
    exact: bool = True

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.frames / self.samplerate


def plausible(path: Path, samplerate: int, channels: int) -> None:
    """Raise ValueError for a rate or a number of channels that no recording has."""
    if not RATES[0] <= samplerate <= RATES[1]:
        raise ValueError(f"{path} is damaged: {samplerate} Hz is no rate of audio.")
    if not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"{path} has {channels} channels: 1 to {MAX_CHANNELS} can be read.")


def fault_in(block: Tensor) -> tuple[int, str] | None:
    """Where in (C, t) the first sample is that no recording has, and what it is; None if all are
    sound."""
    good = block.abs() <= LOUDEST  # NaN is not
    if good.all():
        return None
    at = int((~good).any(dim=0).nonzero()[0])
    worst = block[:, at][~good[:, at]][0].item()
    what = f"values beyond any sound ({worst:.0e})"
    return at, what if math.isfinite(worst) else "NaN or infinite values"
