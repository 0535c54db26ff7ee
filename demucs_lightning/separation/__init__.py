"""From a mixture to its stems with models that see a few seconds; tensors in, tensors out.

`separate` takes a mixture whole, `stream` takes it in blocks and holds a few chunks of it; both run
one model or a `BagOfModels`. Put `normalized` around `separate` for audio at its natural level, and
give `stream` the level that `statistics` finds. Whether a model is in eval mode is the caller's
choice. Results equal those of demucs 4 (`apply_model`).
"""

from demucs_lightning.separation.bags import BagOfModels
from demucs_lightning.separation.devices import Replicas, on_devices
from demucs_lightning.separation.engine import Progress, separate, stream
from demucs_lightning.separation.level import STANDARD, Level, Separation, normalized, statistics
from demucs_lightning.separation.memory import fitting_batch
from demucs_lightning.separation.recorded import Recorded, recorded
from demucs_lightning.separation.transfer import fetched, sent

__all__ = [
    "STANDARD",
    "BagOfModels",
    "Level",
    "Progress",
    "Recorded",
    "Replicas",
    "Separation",
    "fetched",
    "fitting_batch",
    "normalized",
    "on_devices",
    "recorded",
    "sent",
    "separate",
    "statistics",
    "stream",
]
