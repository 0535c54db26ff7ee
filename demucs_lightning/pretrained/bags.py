"""What a bag of models is made of, as data: signatures, weights, a segment.

The yaml of a bag may come from anyone: it is read without building objects, and checked before any
file that it names is looked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any

import yaml


@dataclass(frozen=True)
class Bag:
    """The signatures of M models, their weights (M, S) for S sources (None: all alike), and the
    segment in seconds that they are to separate at (None: each its own).
    """

    signatures: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...] | None = None
    segment: float | None = None


def read_bag(path: str | Path) -> Bag:
    """The bag that a yaml of the reference's form defines: `models`, `weights` and `segment`.

    Raises FileNotFoundError or ValueError, naming the file and what is wrong in it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: the yaml of a bag is expected there.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} can't be read as the yaml of a bag.") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} is not the yaml of a bag: it has no list of models.")
    if unknown := [key for key in content if key not in ("models", "weights", "segment")]:
        raise ValueError(
            f"{path} has {short(unknown[0])}: a bag has models, weights and segment only."
        )
    signatures = _signatures(path, content.get("models"))
    weights = _weights(path, content.get("weights"), len(signatures))
    return Bag(signatures, weights, _segment(path, content.get("segment")))


def _signatures(path: Path, found: Any) -> tuple[str, ...]:
    if not isinstance(found, list) or not found or not all(map(_is_signature, found)):
        raise ValueError(
            f"{path} has models {short(found)}: it must be a list of signatures, each in "
            "quotes, which are names of files without folder or suffix."
        )
    return tuple(found)


def _is_signature(name: Any) -> bool:
    if not isinstance(name, str) or not name or name.startswith("."):
        return False
    return all(letter.isalnum() or letter in "_-." for letter in name)


def _weights(path: Path, found: Any, models: int) -> tuple[tuple[float, ...], ...] | None:
    if found is None:
        return None
    rows = found if isinstance(found, list) and all(isinstance(r, list) for r in found) else []
    widths = {len(row) for row in rows}
    if len(rows) != models or len(widths) != 1 or widths == {0}:
        raise ValueError(
            f"{path} has weights of another shape than its models: one row for each of the "
            f"{models} models is expected, with a number for each source."
        )
    if wrong := [value for row in rows for value in row if not _is_weight(value)]:
        raise ValueError(
            f"{path} has the weight {short(wrong[0])}: it must be a number, 0 or above."
        )
    if not all(map(any, zip(*rows, strict=True))):
        raise ValueError(f"{path} has weights that are 0 in every model for one of the sources.")
    return tuple(tuple(float(value) for value in row) for row in rows)


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) < 1e9  # which no infinity and no NaN is


def _is_weight(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _segment(path: Path, found: Any) -> float | None:
    if found is None:
        return None
    if not _is_number(found) or found <= 0:
        raise ValueError(f"{path} has segment {short(found)}: it must be seconds, above 0.")
    return float(found)
