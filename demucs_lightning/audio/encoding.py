"""Which formats can be written, what each takes, and whether it will work, before any computing."""

from dataclasses import dataclass
from pathlib import Path

import av
import soundfile
from av.error import FFmpegError

from demucs_lightning.audio.files import reason
from demucs_lightning.audio.wav import WIDTHS

MAX_CHANNELS = 64
# FFmpeg's names of layouts, by the number of channels.
LAYOUTS = ("", "mono", "stereo", "3.0", "quad", "5.0", "5.1", "6.1", "7.1")
FLOAT = "FLOAT"
PRESETS = (0, 9)
VORBIS_KILOBITS = 320  # its rate varies
HEADERS = 2**16  # bytes
STEMS = ".stem.mp4"


@dataclass(frozen=True)
class Encoding:
    """How to write, where the format leaves a choice; None is the format's own default.

    `subtype`: PCM_16 (the default), PCM_24, PCM_32 or FLOAT. `bitrate`: kbit/s. `preset`: 0 (best)
    to 9 (fastest), for MP3.
    """

    subtype: str | None = None
    bitrate: int | None = None
    preset: int | None = None


@dataclass(frozen=True)
class Format:
    """A format: who writes it (`wav`, `soundfile`, `av`), and what it can hold."""

    backend: str
    container: str
    codec: str = ""
    subtypes: tuple[str, ...] = ()
    rates: tuple[int, ...] = ()  # Hz; empty: any
    channels: tuple[int, ...] = tuple(range(1, MAX_CHANNELS + 1))
    bitrate: int = 0  # kbit/s of two channels, where none is asked for
    bitrates: tuple[int, int] | None = None  # kbit/s, the least and the most
    options: tuple[tuple[str, str], ...] = ()
    presets: bool = False
    max_bytes: int | None = None


UP_TO_8 = tuple(range(1, 9))
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
BRAND = (("brand", "M4A "),)
AIFF = Format("soundfile", "AIFF", subtypes=tuple(WIDTHS), max_bytes=2**32 - 2**25)
FORMATS = {
    ".wav": Format("wav", "wav", subtypes=tuple(WIDTHS)),
    ".flac": Format("av", "flac", "flac", subtypes=("PCM_16", "PCM_24"), channels=UP_TO_8),
    ".mp3": Format(
        "av",
        "mp3",
        "libmp3lame",
        rates=MP3_RATES,
        channels=(1, 2),
        bitrate=320,
        bitrates=(8, 320),
        presets=True,
    ),
    ".m4a": Format(
        "av",
        "mp4",
        "aac",
        rates=(*MP3_RATES, 64000, 88200, 96000),
        channels=UP_TO_8,
        bitrate=256,
        bitrates=(16, 2048),
        options=BRAND,
    ),
    STEMS: Format(
        "av",
        "mp4",
        "aac",
        rates=(44100, 48000),  # what Traktor plays
        channels=(1, 2),
        bitrate=256,
        bitrates=(16, 512),
        options=BRAND,
    ),
    # Vorbis orders more channels in its own way, which libsndfile leaves to its users.
    ".ogg": Format("soundfile", "OGG", "VORBIS", channels=(1, 2)),
    # With five and seven channels what is decoded is not in the order that was encoded.
    ".opus": Format(
        "av",
        "opus",
        "libopus",
        rates=(48000,),  # what all decoders give, whatever is encoded
        channels=(1, 2, 3, 4, 6, 8),
        bitrate=192,
        bitrates=(6, 2048),
    ),
    ".aiff": AIFF,
    ".aif": AIFF,
}


def format_of(path: str | Path) -> Format:
    """The format that a name asks for; ValueError where it is none of FORMATS."""
    name = str(path).lower()
    suffix = STEMS if name.endswith(STEMS) else Path(name).suffix
    if suffix not in FORMATS:
        listed = ", ".join(sorted(FORMATS))
        raise ValueError(f"{path} can't be written: its name must end in one of {listed}.")
    return FORMATS[suffix]


def subtype_of(path: str | Path, encoding: Encoding | None = None) -> str | None:
    """PCM_16, PCM_24, PCM_32 or FLOAT: how samples will be stored; None where a codec decides.

    Only FLOAT keeps what lies beyond full scale.
    """
    subtypes = format_of(path).subtypes
    return ((encoding.subtype if encoding else None) or subtypes[0]) if subtypes else None


def subtype_like(found: str, path: str | Path) -> str | None:
    """What keeps the depth of a file of subtype `found` (see `AudioInfo`) in a file like `path`.

    The least deep one that loses nothing, or the deepest; None where a codec decides.
    """
    subtypes = format_of(path).subtypes
    wanted = {"DOUBLE": FLOAT, "PCM_U8": "PCM_16", "PCM_S8": "PCM_16"}.get(found, found)
    if wanted in WIDTHS and subtypes:
        return wanted if wanted in subtypes else subtypes[-1]
    return subtypes[0] if subtypes else None  # from a codec: what a player makes of it


def check_encoder(
    path: str | Path,
    *,
    samplerate: int,
    channels: int,
    encoding: Encoding | None = None,
    frames: int = 0,
) -> int:
    """The rate (Hz) that a file called `path` will have, which is `samplerate` where it can be.

    Raises ValueError, in one sentence, where its format, the number of channels, the settings or a
    length of `frames` won't do, or this machine's FFmpeg lacks the encoder. Writes nothing.
    """
    form, encoding = format_of(path), encoding or Encoding()
    if channels not in form.channels:
        can = ", ".join(map(str, form.channels[:8]))
        raise ValueError(f"{path} can't have {channels} channels: one of {can} was expected.")
    _check_settings(path, form, encoding)
    size = frames * channels * WIDTHS.get(subtype_of(path, encoding) or "", 0)
    if form.max_bytes and size > form.max_bytes:
        raise ValueError(
            f"{path} would pass the 4 GiB that its format can hold: .wav has no limit."
        )
    rate = fitting_rate(form, samplerate)
    try:
        _try(form, rate, channels, encoding)
    except (FFmpegError, ValueError) as error:
        raise ValueError(
            f"{path} can't be encoded at {rate} Hz with {channels} channels ({reason(error)})."
        ) from error
    return rate


def expected_bytes(
    path: str | Path,
    *,
    frames: int,
    samplerate: int,
    channels: int,
    encoding: Encoding | None = None,
) -> int:
    """About how much room a file needs, rather more than less; of a `.stem.mp4` each stream."""
    form, encoding = format_of(path), encoding or Encoding()
    width = WIDTHS.get(subtype_of(path, encoding) or "")
    if width:
        return frames * channels * width + HEADERS
    pairs = max(1.0, channels / 2)
    kilobits = encoding.bitrate or (form.bitrate or VORBIS_KILOBITS) * pairs
    return round(frames / samplerate * kilobits * 125 * 1.1) + HEADERS


def _check_settings(path: str | Path, form: Format, encoding: Encoding) -> None:
    subtype, bitrate, preset = encoding.subtype, encoding.bitrate, encoding.preset
    if subtype and subtype not in form.subtypes:
        can = ", ".join(form.subtypes)
        raise ValueError(
            f"{path} can't be written as {subtype}: "
            + (f"one of {can} was expected." if can else "its codec has no depth to choose.")
        )
    if bitrate is not None and not form.bitrates:
        raise ValueError(f"{path} has no bit rate to choose: leave bitrate={bitrate} out.")
    if bitrate is not None and form.bitrates and not in_range(bitrate, form.bitrates):
        low, high = form.bitrates
        raise ValueError(f"bitrate={bitrate}: {low} to {high} kbit/s can be chosen for {path}.")
    if preset is not None and not form.presets:
        raise ValueError(f"{path} has no preset to choose: leave preset={preset} out.")
    if preset is not None and not in_range(preset, PRESETS):
        raise ValueError(f"preset={preset}: 0 (best) to 9 (fastest) was expected.")


def in_range(number: int, bounds: tuple[int, int]) -> bool:
    return bounds[0] <= number <= bounds[1]


def fitting_rate(form: Format, samplerate: int) -> int:
    """`samplerate` where the format has it, or else the next rate above; past the highest, the
    highest that divides it, as 44100 does 88200."""
    if not form.rates or samplerate in form.rates:
        return samplerate
    above = [rate for rate in form.rates if rate > samplerate]
    if above:
        return min(above)
    return max([rate for rate in form.rates if samplerate % rate == 0] or form.rates)


def _try(form: Format, rate: int, channels: int, encoding: Encoding) -> None:
    if form.backend == "soundfile" and not soundfile.check_format(
        form.container, form.codec or None
    ):
        raise ValueError(f"this libsndfile lacks {form.container}")
    if form.backend != "av":
        return
    codec = av.CodecContext.create(form.codec, "w")
    assert isinstance(codec, av.AudioCodecContext)
    codec.sample_rate, codec.layout = rate, LAYOUTS[channels]
    configure(codec, form, encoding)
    codec.open()


def configure(codec: av.AudioCodecContext, form: Format, encoding: Encoding) -> None:
    """Set up an encoder of FFmpeg that has its rate and channels."""
    subtype = encoding.subtype or next(iter(form.subtypes), "")
    codec.format = SAMPLES.get(subtype) or {"libopus": "flt"}.get(form.codec, "fltp")
    if form.bitrate:
        pairs = max(1.0, codec.layout.nb_channels / 2)
        codec.bit_rate = 1000 * (encoding.bitrate or round(form.bitrate * pairs))
    if form.presets:
        codec.options = {
            "compression_level": str(2 if encoding.preset is None else encoding.preset)
        }


SAMPLES = {"PCM_16": "s16", "PCM_24": "s32"}  # what FLAC's encoder takes
