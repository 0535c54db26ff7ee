"""What writes a format: blocks go in as the steps or floats that the file will hold.

WAV is written here (see wav.py), Ogg Vorbis and AIFF by libsndfile, which leaves most of their tags
to ogg.py and id3.py, and FLAC, MP3, M4A and Opus by FFmpeg.
"""

from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import numpy as np
import soundfile
from av.error import FFmpegError
from torch import Tensor

from demucs_lightning.audio.encoding import LAYOUTS, Encoding, Format, configure
from demucs_lightning.audio.files import native, url
from demucs_lightning.audio.id3 import append, tag
from demucs_lightning.audio.metadata import (
    PICTURE,
    Tags,
    attach_cover,
    picture_comment,
    vorbis_comments,
)
from demucs_lightning.audio.ogg import filler, settle
from demucs_lightning.audio.wav import WavFile

VORBIS_QUALITY = 0.8  # of 1: about 256 kbit/s
PIECE = (
    2**14
)  # frames that libsndfile is given at a time: its Vorbis encoder puts them on the stack


@dataclass(frozen=True)
class Job:
    """A file to write at `path`: `streams` of `channels` each, one but for a `.stem.mp4`."""

    path: Path
    form: Format
    samplerate: int
    channels: int
    streams: int
    subtype: str | None
    encoding: Encoding
    tags: Tags


class Target(Protocol):
    """Takes blocks (streams * channels, t): int32 steps for PCM, float32 for anything else."""

    def write(self, block: Tensor) -> None:
        """Append a block."""
        ...

    def close(self) -> None:
        """Complete the file."""
        ...

    def abort(self) -> None:
        """Let go of the file, which is of no use; never raises."""
        ...


def open_target(job: Job) -> Target:
    """Start the file of a job."""
    if job.form.backend == "soundfile":
        return SoundfileTarget(job)
    if job.form.backend == "av":
        return AvTarget(job)
    return WavFile(
        job.path,
        samplerate=job.samplerate,
        channels=job.channels,
        subtype=job.subtype or "",
        info=job.tags.texts(),
        id3=tag(job.tags),
    )


class SoundfileTarget:
    """Ogg Vorbis and AIFF, through libsndfile."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._shift = 32 - {"PCM_16": 16, "PCM_24": 24}.get(job.subtype or "", 32)
        self._file = soundfile.SoundFile(
            native(job.path),
            "w",
            samplerate=job.samplerate,
            channels=job.channels,
            format=job.form.container,
            subtype=job.form.codec or job.subtype,
            compression_level=1 - VORBIS_QUALITY if job.form.codec else None,
        )
        self._comments = vorbis_comments(job.tags) if job.form.container == "OGG" else []
        if self._comments:
            self._file.date = filler(self._comments)

    def write(self, block: Tensor) -> None:
        block = block << self._shift if self._shift else block
        for piece in block.T.contiguous().split(PIECE):
            self._file.write(piece.numpy())

    def close(self) -> None:
        self._file.close()
        if self._job.form.container == "OGG":
            settle(self._job.path, self._comments)
        elif content := tag(self._job.tags, all_texts=True):
            append(self._job.path, content)

    def abort(self) -> None:
        with suppress(soundfile.SoundFileError):
            self._file.close()


class AvTarget:
    """FLAC, MP3, M4A, Opus, and several streams in one MP4, through FFmpeg."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._shift = 8 if job.subtype == "PCM_24" else 0
        self._done = 0
        options = dict(job.form.options)
        if job.form.container == "mp4":  # else lengths are in milliseconds, and the shortest are 0
            options["movie_timescale"] = str(job.samplerate)
        self._container = av.open(url(job.path), "w", format=job.form.container, options=options)
        try:
            self._streams = [self._add(job) for _ in range(job.streams)]
            self._describe(job.tags, job.form.container)
        except BaseException:
            self.abort()
            raise

    def _add(self, job: Job) -> av.AudioStream:
        layout = LAYOUTS[job.channels]
        stream = self._container.add_stream(job.form.codec, rate=job.samplerate, layout=layout)
        assert isinstance(stream, av.AudioStream)
        configure(stream.codec_context, job.form, job.encoding)
        return stream

    def _describe(self, tags: Tags, form: str) -> None:
        """The tags and the cover, which stand before the sound."""
        self._container.metadata.update(tags.texts())
        if not tags.cover:
            return
        if form == "opus":
            self._container.metadata[PICTURE] = picture_comment(tags)
        elif picture := attach_cover(self._container, tags.cover):
            self._container.start_encoding()
            packet = av.Packet(tags.cover)
            packet.stream, packet.pts, packet.dts = picture, 0, 0
            self._container.mux(packet)

    def write(self, block: Tensor) -> None:
        job = self._job
        for stream, samples in zip(self._streams, block.split(job.channels), strict=True):
            name = stream.codec_context.format.packed.name
            array = _arranged(samples, name, self._shift)
            frame = av.AudioFrame.from_ndarray(array, format=name, layout=LAYOUTS[job.channels])
            frame.sample_rate, frame.pts = job.samplerate, self._done
            frame.time_base = Fraction(1, job.samplerate)
            self._container.mux(stream.encode(frame))
        self._done += block.shape[-1]

    def close(self) -> None:
        for stream in self._streams:
            self._container.mux(stream.encode(None))
        self._container.close()
        if self._job.form.container == "opus":
            settle(self._job.path)

    def abort(self) -> None:
        with suppress(FFmpegError, OSError):  # what couldn't be written before still can't
            self._container.close()


def _arranged(samples: Tensor, form: str, shift: int) -> np.ndarray:
    """(C, t) as (1, t * C), interleaved: PyAV takes no eight planes."""
    if form == "s16":
        samples = samples.short()
    elif form == "s32":
        samples = samples << shift
    return samples.T.reshape(1, -1).contiguous().numpy()
