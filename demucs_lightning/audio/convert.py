"""Rates and channels, of whole recordings and of pieces of one.

Rates are converted by soxr's best recipe; in pieces it gives what it gives in one go, to the bit.
"""

import soxr
import torch
from torch import Tensor

QUALITY = "VHQ"


def resample(audio: Tensor, *, old: int, new: int) -> Tensor:
    """Convert (..., T) from `old` to `new` Hz by soxr's best recipe, to round(T * new / old)."""
    if old == new:
        return audio
    flat = audio.reshape(-1, audio.shape[-1]).T.numpy()
    converted = torch.from_numpy(soxr.resample(flat, old, new, quality=QUALITY))
    return converted.T.reshape(*audio.shape[:-1], -1)


def resampled_length(frames: int, *, old: int, new: int) -> int:
    """How many samples `resample` makes of `frames`; of a half, soxr may make one or none."""
    return (2 * frames * new + old) // (2 * old)


class Resampler:
    """`resample`, one block (C, t) after the other: what comes out, joined, is the same.

    The filter needs what follows: a block may give nothing yet, and `flush` gives the rest. Equal
    rates hand the blocks through.
    """

    def __init__(self, channels: int, *, old: int, new: int) -> None:
        self._channels = channels
        self._stream = None
        if old != new:
            self._stream = soxr.ResampleStream(old, new, channels, "float32", quality=QUALITY)

    def __call__(self, block: Tensor) -> Tensor:
        return self._next(block, last=False)

    def flush(self) -> Tensor:
        """The end of the recording; the resampler is of no use after that."""
        return self._next(torch.zeros(self._channels, 0), last=True)

    def _next(self, block: Tensor, *, last: bool) -> Tensor:
        if self._stream is None:
            return block
        samples = block.float().T.contiguous().numpy()
        return torch.from_numpy(self._stream.resample_chunk(samples, last=last)).T


def convert_channels(audio: Tensor, channels: int) -> Tensor:
    """(..., C, T) with `channels` channels: mono is copied to each, the mean of all makes mono,
    and of more than asked for the first ones stay. Raises ValueError for fewer, but not mono."""
    found = audio.shape[-2]
    if channels == 1 and found > 1:
        return audio.mean(dim=-2, keepdim=True)
    if found == 1:
        return audio.expand(*audio.shape[:-2], channels, audio.shape[-1])
    if found < channels:
        raise ValueError(f"{found} channels can't become {channels}: only mono can be spread.")
    return audio[..., :channels, :]
