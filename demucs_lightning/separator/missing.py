"""Of a track some of whose parts are there and shall stay: what is to be computed for the others.

Members of a bag that serve none of these don't run. But what was made quieter, so that it doesn't
clip, was so by one gain for all parts of a track, and the missing ones must have that gain too.
Where a part that is there may be the one that it comes from, all are computed.
"""

import logging
import math
from dataclasses import replace
from pathlib import Path

from demucs_lightning import audio
from demucs_lightning.audio.writing import SCALES
from demucs_lightning.separator.files import Plan

log = logging.getLogger(__name__)

HEADROOM = 1.01  # what is rescaled peaks just below full scale, as in demucs 4
ROUNDING = 1e-4  # of full scale, in steps of 16 bits
BLUR = 0.2  # what a codec may take from a peak


def narrowed(planned: Plan) -> Plan:
    """The plan, for no more parts than are missing where they don't depend on the others."""
    alone = planned.kept and not (planned.together or planned.exact)
    if not alone or (planned.rescales and _is_scaled(planned)):
        return planned
    missing = [name for name in planned.parts.names if name not in planned.kept]
    return replace(planned, parts=planned.parts.only(missing))


def _is_scaled(planned: Plan) -> bool:
    """Whether the gain of the parts that are there may be that at which one of them just fits."""
    top = 1 / HEADROOM
    low, high = (ROUNDING, ROUNDING) if planned.subtype in SCALES else (BLUR, math.inf)
    try:
        peak = max(_peak(planned.files[name]) for name in planned.kept)
    except (ValueError, OSError) as error:
        log.warning("%s All stems are computed, for the gain that they share.", error)
        return True
    return top - low <= peak <= top + high


def _peak(file: Path) -> float:
    return max(block.abs().max().item() for block in audio.stream(file))
