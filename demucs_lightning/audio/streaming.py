"""A recording of any length, block by block, at the rate and with the channels asked for."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from demucs_lightning.audio.convert import Resampler, convert_channels, resampled_length
from demucs_lightning.audio.decoding import BLOCK, blocks, info, resized
from demucs_lightning.audio.files import existing, no_audio
from demucs_lightning.audio.form import AudioInfo, fault_in


class AudioReader:
    """Iterating decodes the file from its start, each time anew, into blocks (C, t) float32.

    `block` is t in frames, at the rate asked for, and the last block is shorter. `samplerate` (Hz)
    and `channels` are the file's own by default. Memory doesn't grow with the length. Iterating
    raises ValueError where a sample is NaN, infinite or beyond any scale, where the file is
    truncated or damaged, and where it holds no sample; making a reader where it can't be opened.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        block: int = BLOCK,
        samplerate: int | None = None,
        channels: int | None = None,
        stream: int = 0,
    ) -> None:
        if block < 1:
            raise ValueError(f"block={block} frames: 1 or more were expected.")
        self.path = existing(path)
        self.block, self.stream = block, stream
        self.info: AudioInfo = info(self.path, stream, count=False)
        self.samplerate = samplerate or self.info.samplerate
        self.channels = channels or self.info.channels
        try:
            convert_channels(torch.empty(self.info.channels, 0), self.channels)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error

    @cached_property
    def frames(self) -> int:
        """How many samples will come, or one less; a guess unless `info.exact`, 0 for unknown."""
        return resampled_length(self.info.frames, old=self.info.samplerate, new=self.samplerate)

    def __iter__(self) -> Iterator[Tensor]:
        return resized(self._converted(), self.block)

    def _converted(self) -> Iterator[Tensor]:
        # Fewer channels are made before the rate is converted, and more after it.
        narrow = min(self.channels, self.info.channels)
        resampler = Resampler(narrow, old=self.info.samplerate, new=self.samplerate)
        done = made = 0
        size = max(1, min(self.block, self.block * self.info.samplerate // self.samplerate))
        for block in blocks(self.path, size=size, stream=self.stream):
            self._check(block, done)
            done += block.shape[-1]
            converted = resampler(convert_channels(block, narrow))
            made += converted.shape[-1]
            yield convert_channels(converted, self.channels)
        if not done:
            raise no_audio(self.path)
        if self.samplerate == self.info.samplerate:
            return
        rest = resampler.flush()
        if not made + rest.shape[-1]:  # a sample or two at a higher rate: not nothing
            rest = torch.zeros(narrow, 1)
        yield convert_channels(rest, self.channels)

    def _check(self, block: Tensor, done: int) -> None:
        if block.shape[0] != self.info.channels:
            raise ValueError(
                f"{self.path} is damaged: it has {block.shape[0]} channels, not the "
                f"{self.info.channels} that its header says."
            )
        if fault := fault_in(block):
            second = (done + fault[0]) / self.info.samplerate
            raise ValueError(
                f"{self.path} holds {fault[1]} from second {second:.3f} on: it is no usable "
                "recording."
            )


def stream(
    path: str | Path,
    *,
    block: int = BLOCK,
    samplerate: int | None = None,
    channels: int | None = None,
    stream: int = 0,
) -> AudioReader:
    """The blocks (C, t) of a file, in bounded memory: see `AudioReader`."""
    return AudioReader(path, block=block, samplerate=samplerate, channels=channels, stream=stream)
