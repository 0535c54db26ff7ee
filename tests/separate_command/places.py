"""Where stems go, and what was written."""

from pathlib import Path

from demucs_lightning import audio
from tests.separator.models import FOUR


def written() -> set[str]:
    return {str(path) for path in Path().rglob("*") if path.is_file()}


def stems(folder: str, names=tuple(FOUR), ext: str = "wav") -> set[str]:
    return {f"{folder}/{name}.{ext}" for name in names}


def mode(path: str) -> tuple[int, str]:
    info = audio.info(path)
    return info.samplerate, info.subtype
