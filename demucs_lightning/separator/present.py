"""Which parts of a track are there already, whole, so that they may stay."""

import logging
from collections.abc import Mapping
from pathlib import Path

from demucs_lightning import audio
from demucs_lightning.audio.ffmpeg import reaches

log = logging.getLogger(__name__)

# Samples by which the length of a file and its track may differ: by rounding where a header counts
# them, and by what codecs add in front and behind.
ROUNDING, PADDING = 2, 4096


def present_in(files: Mapping[str, Path], seconds: float) -> list[str]:
    """The parts whose files are there, of a track that lasts ``seconds`` (0: unknown).

    What is cut off, damaged or of another length is not: that is said, and it is made anew.
    """
    there = dict.fromkeys(file for file in files.values() if file.exists())
    broken = {file for file in there if not is_whole(file, seconds)}
    for file in broken:
        log.warning("%s is damaged or not as long as its track: it is made anew.", file)
    return [name for name, file in files.items() if file in there and file not in broken]


def is_whole(file: Path, seconds: float) -> bool:
    """Whether a file can be decoded to its end, after about ``seconds`` (0: any length)."""
    try:
        found = audio.info(file, count=False)
        slack = (ROUNDING if found.exact else PADDING) / found.samplerate
        fits = not seconds or abs(found.duration - seconds) <= slack
        return fits and reaches(file, found.duration)
    except ValueError:
        return False
