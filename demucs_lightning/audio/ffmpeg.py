"""Audio through FFmpeg (PyAV): MP3, M4A, films, and whatever else it decodes.

Only the file itself is opened, whatever it says: a playlist would have others opened, from the net
too.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import torch
from av.container import InputContainer
from av.error import InvalidDataError
from torch import Tensor

from demucs_lightning.audio.files import decoding, no_audio, truncated, url
from demucs_lightning.audio.form import AudioInfo, plausible
from demucs_lightning.audio.whole import damaged, promises_length

log = logging.getLogger(__name__)

# Shorter than its header says by more than this (seconds), a file is truncated. What encoders add
# in front and behind is less than a tenth.
SLACK = 0.25
# By more than this, some of it was lost on the way: nearly all encoders say what they add.
LOST = 0.05
LOST_FRAMES = 2  # of the codec, which may be longer than that
TAIL = 10  # seconds: longer than any frame
PCM = {
    "pcm_u8": "PCM_U8",
    "pcm_s8": "PCM_S8",
    "pcm_s16": "PCM_16",
    "pcm_s24": "PCM_24",
    "pcm_s32": "PCM_32",
    "pcm_f32": "FLOAT",
    "pcm_f64": "DOUBLE",
}


@contextmanager
def opened(path: Path, stream: int) -> Iterator[tuple[InputContainer, av.AudioStream]]:
    """A container and its audio stream of that number."""
    options = {"protocol_whitelist": "file"}
    with (
        decoding(path),
        av.open(url(path), options=options, metadata_errors="replace") as container,
    ):
        streams = container.streams.audio
        if not streams:
            raise ValueError(f"{path} has no sound: no stream in it is audio.")
        if stream >= len(streams):
            raise ValueError(
                f"{path} has {len(streams)} audio streams, so none is number {stream}."
            )
        yield container, streams[stream]


def av_info(path: Path, container: InputContainer, audio: av.AudioStream) -> AudioInfo:
    """What the first frame says, as headers don't know all that decoders make (HE-AAC)."""
    codec = audio.codec_context
    seconds = _seconds(container, audio) or 0.0
    first = next(_decoded(path, container, audio), None)
    if first is None:
        raise no_audio(path)
    samplerate, channels = _form(path, first)
    name = codec.codec.canonical_name
    subtype = next((depth for start, depth in PCM.items() if name.startswith(start)), name)
    if name in ("flac", "alac"):
        subtype = "PCM_16" if first.format.name.startswith("s16") else "PCM_24"
    frames = max(0, round(seconds * samplerate))
    return AudioInfo(samplerate, channels, frames, subtype, exact=False)


def _form(path: Path, frame: av.AudioFrame) -> tuple[int, int]:
    form = frame.sample_rate, frame.layout.nb_channels
    plausible(path, *form)
    return form


def _seconds(container: InputContainer, audio: av.AudioStream) -> float | None:
    if audio.duration and audio.time_base:
        return float(audio.duration * audio.time_base)
    return container.duration / av.time_base if container.duration else None


def _promised_seconds(path: Path, container: InputContainer, audio: av.AudioStream) -> float | None:
    """The length that a header vouches for; None for one that is unknown or a guess."""
    names = container.format.name
    if "mp3" in names:
        vouched = promises_length(path)
    elif "asf" in names or "matroska" in names:  # they tell the length of the longest stream
        vouched = sum(stream.type in ("audio", "video") for stream in container.streams) == 1
    else:
        vouched = "mp4" in names
    return _seconds(container, audio) if vouched else None


def av_frames(path: Path, stream: int) -> Iterator[av.AudioFrame]:
    """What FFmpeg decodes, in the decoder's own frames, as interleaved floats: PyAV does not take
    eight planes."""
    with opened(path, stream) as (container, audio):
        promise = _promised_seconds(path, container, audio)
        floats = av.AudioResampler(format="flt")
        first, done, skipped, size = (0, 0), 0, Skipped(), 0
        for decoded in _decoded(path, container, audio, skipped):
            form = _form(path, decoded)
            first, size = first if done else form, max(size, decoded.samples)
            if form != first:
                raise ValueError(
                    f"{path} changes its rate or channels at second {done / first[0]:.1f}: "
                    "a recording of one kind was expected."
                )
            for frame in floats.resample(decoded):
                done += frame.samples
                yield frame
    if not done:
        return
    lost = promise - done / first[0] if promise else 0.0
    if promise and lost > SLACK:
        raise truncated(path, round(promise * first[0]), done)
    # Where tracks are joined, headers between them are skipped, and their length was a guess.
    if lost > max(LOST, (LOST_FRAMES + skipped.count) * size / first[0]):
        log.warning("%s", damaged(path, lost, skipped.at))
    elif skipped.count:
        what = "1 piece of it is" if skipped.count == 1 else f"{skipped.count} pieces of it are"
        were = "was" if skipped.count == 1 else "were"
        where = "" if skipped.at is None else f", at second {skipped.at:.1f}"
        text = "%s: %s damaged or no audio and %s skipped%s."
        log.warning(text, path, what, were, where)


def reaches(path: Path, seconds: float) -> bool:
    """Whether a file can be decoded up to there: only the last seconds are."""
    end = 0.0
    with opened(path, 0) as (container, audio):
        if seconds > TAIL:
            container.seek(int((seconds - TAIL) * av.time_base))
        for frame in _decoded(path, container, audio):
            end = (frame.time or 0.0) + frame.samples / frame.sample_rate
    return end > seconds - LOST


@dataclass
class Skipped:
    """Packets that no decoder takes, and the second of the first."""

    count: int = 0
    at: float | None = None


def _decoded(
    path: Path, container: InputContainer, audio: av.AudioStream, skipped: Skipped | None = None
) -> Iterator[av.AudioFrame]:
    """The frames of a stream. Between those of an MP3 there may be tags and junk, and a last packet
    may be cut: that is skipped, and counted."""
    tolerant, skipped, sound = "mp3" in container.format.name, skipped or Skipped(), False
    failure: InvalidDataError | None = None
    for packet in container.demux(audio):
        try:
            frames = packet.decode()
        except InvalidDataError as error:
            if failure and not tolerant:
                raise
            failure = error
            if not skipped.count and packet.pts is not None and packet.time_base:
                skipped.at = float(packet.pts * packet.time_base)
            skipped.count += 1
            continue
        if failure and frames and not tolerant:
            raise failure
        sound = sound or bool(frames)
        yield from frames
    if failure and not sound:
        raise failure


def samples(frame: av.AudioFrame) -> Tensor:
    """The (C, t) of one of `av_frames`."""
    return torch.from_numpy(frame.to_ndarray()).reshape(-1, frame.layout.nb_channels).T
