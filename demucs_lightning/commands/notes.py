"""What files can't hold of a track, so that nothing is lost without a word."""

from demucs_lightning.audio.encoding import FLOAT, fitting_rate, format_of
from demucs_lightning.separator import Plan

# The bit rates of MP3 in kbit/s, from a rate in Hz on.
MPEG_1 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
MPEG_2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
MPEG_25 = MPEG_2[:8]
BITS = {"PCM_16": 16, "PCM_24": 24, "PCM_32": 32, "FLOAT": 32, "DOUBLE": 64}
READ_AS_24 = {"PCM_32", "DOUBLE"}  # what single precision holds of them


def notes(planned: Plan) -> list[str]:
    """Sentences, the same for all tracks of one kind."""
    name, form = planned.target.format, format_of(planned.written[0])
    said, rate = [], fitting_rate(form, planned.rate)
    if rate != planned.rate:
        said.append(f"{name} can't hold {planned.rate} Hz: these stems have {rate} Hz.")
    if depth := _depth(planned):
        said.append(f"{depth}, as {name} holds no more.")
    if planned.exact and planned.reader.info.subtype in READ_AS_24:
        bits = BITS[planned.reader.info.subtype]
        said.append(f"The track is read with 24 of its {bits} bits, and its stems sum up to that.")
    asked = planned.encoding.bitrate
    if asked and name == "mp3" and (can := nearest(asked, rate)) != asked:
        said.append(f"mp3 has no {asked} kbit/s at {rate} Hz: these stems have {can} kbit/s.")
    return said


def nearest(kilobits: int, rate: int) -> int:
    """The bit rate that an MP3 has where this one is asked for."""
    table = MPEG_1 if rate >= 32_000 else MPEG_2 if rate >= 16_000 else MPEG_25
    return min(table, key=lambda each: abs(each - kilobits))


def _depth(planned: Plan) -> str:
    """What becomes of the depth of the input, where none is asked for and it doesn't stay."""
    own, kept = planned.reader.info.subtype, planned.subtype
    if planned.target.subtype or kept is None or own not in BITS:
        return ""
    if BITS[own] > BITS[kept]:
        return f"The track has {BITS[own]} bits, and these stems {BITS[kept]}"
    if own == FLOAT and kept != FLOAT:
        return f"The track has floats, and these stems {BITS[kept]} bits"
    return ""
