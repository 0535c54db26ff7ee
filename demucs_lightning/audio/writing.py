"""Audio files written block by block: all of one or nothing.

A file has a temporary name beside its place until it is complete, so an error, a full disk or
Ctrl-C leave nothing behind, and what was there before stays. No dither is added.
"""

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import soundfile
import torch
from av.error import FFmpegError
from torch import Tensor

from demucs_lightning.audio.convert import Resampler
from demucs_lightning.audio.encoding import (
    FLOAT,
    Encoding,
    check_encoder,
    format_of,
    subtype_of,
)
from demucs_lightning.audio.files import reason
from demucs_lightning.audio.metadata import Tags
from demucs_lightning.audio.parts import held, partial_name
from demucs_lightning.audio.targets import Job, Target, open_target

SCALES = {"PCM_16": 2**15, "PCM_24": 2**23, "PCM_32": 2**31}
BLOCK = 2**20  # frames
# libsndfile's Python side asserts that all was written.
FAILURES = (soundfile.SoundFileError, FFmpegError, OSError, AssertionError)


class AudioWriter:
    """A context manager: `write` blocks (C, t), and the file is there when the block ends.

    The format is the name's (see FORMATS), the samples are at `samplerate` Hz; where the format
    lacks that rate they are converted to the one that `check_encoder` gives, `file_samplerate`.
    Only FLOAT keeps values beyond full scale. Anything else refuses them, so nobody's peaks are
    lost unsaid, or saturates with `clip`; PCM rounds to the nearest step, where +1 is the last one.
    Raises what `check_encoder` raises when it is made; `write` ValueError for a wrong shape, NaN,
    infinity or a value beyond full scale; OSError where the disk fails.
    """

    def __init__(  # noqa: PLR0913
        self,
        path: str | Path,
        *,
        samplerate: int,
        channels: int,
        encoding: Encoding | None = None,
        tags: Tags | None = None,
        clip: bool = False,
        streams: int = 1,
    ) -> None:
        self.path, self.samplerate, self.channels = Path(path), samplerate, channels
        self.frames = 0  # so far
        self.file_samplerate = check_encoder(
            self.path, samplerate=samplerate, channels=channels, encoding=encoding
        )
        self._clip = clip
        self._job = Job(
            path=partial_name(self.path),
            form=format_of(self.path),
            samplerate=self.file_samplerate,
            channels=channels,
            streams=streams,
            subtype=subtype_of(self.path, encoding),
            encoding=encoding or Encoding(),
            tags=tags or Tags(),
        )
        self._resampler = Resampler(streams * channels, old=samplerate, new=self.file_samplerate)
        self._target: Target | None = None
        self._lock: int | None = None

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = held(self._job.path)
            self._target = open_target(self._job)
        except FAILURES as error:
            raise self._failed(error) from error
        finally:
            if self._target is None:
                self._release()
                with suppress(OSError):  # of its folder, which was told already
                    self._job.path.unlink(missing_ok=True)
        return self

    def write(self, block: Tensor) -> None:
        """Append (C, t), float of any width, or int16 as it is in a file."""
        if block.ndim != 2 or block.shape[0] != self.channels:
            raise ValueError(
                f"{self.path} takes blocks of shape ({self.channels}, t), not {tuple(block.shape)}."
            )
        self._append(block)

    def _append(self, block: Tensor) -> None:
        """Append (streams * channels, t)."""
        block = self._checked(block)
        self.frames += block.shape[-1]
        self._send(self._resampler(block))

    def _send(self, block: Tensor) -> None:
        if self._target is None:
            raise ValueError(f"{self.path} is not open: it is written to in a with statement.")
        if not block.shape[-1]:
            return
        try:
            self._target.write(_stored(block, self._job.subtype))
        except FAILURES as error:
            raise self._failed(error) from error

    def _checked(self, block: Tensor) -> Tensor:
        """Floats, finite, and within full scale unless the file keeps what is not. Float64 stays,
        as float32 doesn't hold all steps of PCM_32."""
        block = block.detach().cpu()
        if block.dtype == torch.int16:
            block = block / SCALES["PCM_16"]
        block = block if block.dtype == torch.float64 else block.float()
        peaks = block.abs().amax(dim=0)
        good, fault = torch.isfinite(peaks), "NaN or infinite values"
        if good.all() and self._job.subtype != FLOAT and not self._clip:
            good, fault = peaks <= 1, "values beyond full scale, which only FLOAT keeps,"
        if not good.all():
            second = (self.frames + int((~good).nonzero()[0])) / self.samplerate
            raise ValueError(
                f"{self.path} is not written: the audio holds {fault} at second {second:.3f}."
            )
        return block

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        target, whole = self._target, False
        assert target is not None
        try:
            if kind is None:
                self._complete(target)
                whole = True
        except FAILURES as failure:
            raise self._failed(failure) from failure
        finally:
            self._target = None
            if not whole:
                target.abort()
                self._job.path.unlink(missing_ok=True)
            self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _complete(self, target: Target) -> None:
        if not self.frames:
            raise ValueError(f"{self.path} is not written: it would hold no sample.")
        if self.file_samplerate != self.samplerate:
            self._send(self._resampler.flush())
        self._finish(target, self._job.path)
        self._job.path.replace(self.path)

    def _finish(self, target: Target, partial: Path) -> None:
        """Close the file, which still has its temporary name."""
        target.close()

    def _failed(self, error: Exception) -> OSError:
        if isinstance(error, OSError) and str(error).startswith(f"{self.path} can't"):
            return error
        why = reason(error) or "the disk may be full"
        return OSError(f"{self.path} can't be written ({why}).")


def writer(
    path: str | Path,
    *,
    samplerate: int,
    channels: int,
    encoding: Encoding | None = None,
    tags: Tags | None = None,
    clip: bool = False,
) -> AudioWriter:
    """A file to write (C, t) blocks to, in a with statement: see `AudioWriter`."""
    return AudioWriter(
        path, samplerate=samplerate, channels=channels, encoding=encoding, tags=tags, clip=clip
    )


def write(path: str | Path, audio: Tensor, *, samplerate: int, subtype: str | None = None) -> None:
    """Write (C, T) audio, float or int16, in the format that the name asks for.

    `subtype` is PCM_16 (the default), PCM_24, PCM_32 or FLOAT where the format has a choice. FLOAT
    keeps values beyond full scale, anything else saturates. Raises as `AudioWriter` does.
    """
    encoding = Encoding(subtype=subtype)
    channels = audio.shape[0]
    with writer(path, samplerate=samplerate, channels=channels, encoding=encoding, clip=True) as to:
        for block in audio.split(BLOCK, dim=-1):
            to.write(block)


def _stored(block: Tensor, subtype: str | None) -> Tensor:
    """What a file holds: the steps of PCM, or floats, which a codec wants within full scale."""
    if subtype == FLOAT:
        return block.float()
    if subtype is None:
        return block.float().clamp(-1, 1)
    scale = SCALES[subtype]
    return (block.double() * scale).round().clamp(-scale, scale - 1).int()
