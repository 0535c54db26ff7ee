"""The reference package: its classes, or one sentence where it is not installed."""

import sys

try:
    import demucs
    from demucs import augment
    from demucs.apply import apply_model
    from demucs.demucs import Demucs
    from demucs.hdemucs import HDemucs
    from demucs.htdemucs import HTDemucs
except ModuleNotFoundError as error:
    sys.exit(
        f"error: The package {error.name} is not installed: pip install -r requirements-dev.txt "
        "brings what the benchmarks compare with."
    )

__all__ = ["Demucs", "HDemucs", "HTDemucs", "apply_model", "augment", "demucs"]
