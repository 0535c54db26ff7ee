"""Several models that separate together: a weighted mean, source by source.

Weights and segments mean what they mean in demucs 4, whose released bags this holds.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from demucs_lightning.models import SeparationModel


class BagOfModels(nn.Module):
    """Models that agree on what they separate; `separate` and `stream` run them.

    ``weights`` (M, S) weigh model m in the mean for source s; None: all alike. ``segment``, in
    seconds, is for the members in place of their own, but for those that take no chunk as long.
    A member that is given another segment is in the bag as a view: the same weights, and the model
    itself stays as it is.

    Raises ValueError for members that disagree, and for weights or a segment that don't fit.
    """

    def __init__(
        self,
        models: Sequence[Any],
        weights: Sequence[Sequence[float]] | None = None,
        *,
        segment: float | None = None,
    ) -> None:
        super().__init__()
        if not models:
            raise ValueError("A bag of models needs at least one model.")
        _check_alike(models)
        self.sources: list[str] = list(models[0].sources)
        self.audio_channels: int = models[0].audio_channels
        self.samplerate: int = models[0].samplerate
        self.weights = [[1.0] * len(self.sources) for _ in models]
        if weights is not None:
            _check_weights(weights, len(models), self.sources)
            self.weights = [[float(weight) for weight in row] for row in weights]
        self.segment = segment
        self.models: Any = nn.ModuleList(
            model if segment is None else at_segment(model, segment) for model in models
        )

    @property
    def max_segment(self) -> float:
        """Seconds of the longest chunk that every member takes."""
        return min(float(model.max_segment) for model in self.models)


class Member(NamedTuple):
    """A model, and its part of the mean for each of the stems that are asked for."""

    model: SeparationModel
    shares: list[float]


def members(
    model: SeparationModel | BagOfModels, stems: Sequence[str] | None = None
) -> list[Member]:
    """The models of a bag, or the one model, each with its shares of ``stems`` (None: of all).

    Shares of a stem add up to 1. Members that serve none of the stems are listed too.
    """
    wanted = [model.sources.index(name) for name in chosen(model, stems)]
    if not isinstance(model, BagOfModels):
        return [Member(model, [1.0] * len(wanted))]
    totals = [sum(column) for column in zip(*model.weights, strict=True)]
    rows = zip(model.models, model.weights, strict=True)
    return [Member(member, [row[s] / totals[s] for s in wanted]) for member, row in rows]


def chosen(model: SeparationModel | BagOfModels, stems: Sequence[str] | None) -> list[str]:
    """The names in ``stems``, or all that the model has; raises ValueError for an unknown one."""
    names = list(model.sources if stems is None else stems)
    known = ", ".join(model.sources)
    if isinstance(stems, str) or not names:
        raise ValueError(f"stems is {stems!r}: it must be a list of some of {known}.")
    if unknown := [name for name in names if name not in model.sources]:
        raise ValueError(f"There is no stem {unknown[0]!r}: the model has {known}.")
    return names


def at_segment(model: Any, segment: float) -> Any:
    """The model with another segment, sharing its weights; itself if it takes none as long."""
    if segment > float(model.max_segment) or segment == model.segment:
        return model
    view = copy.copy(model)  # shallow: parameters, buffers and layers are the same objects
    view.segment = segment
    return view


def _check_alike(models: Sequence[Any]) -> None:
    first = models[0]
    for number, model in enumerate(models[1:], start=2):
        for name in ("sources", "audio_channels", "samplerate"):
            here, there = getattr(model, name), getattr(first, name)
            if here != there:
                raise ValueError(
                    f"Model {number} of the bag has {name} {here}, and the first has {there}: "
                    "the models of a bag must agree."
                )


def _check_weights(weights: Sequence[Sequence[float]], models: int, sources: Sequence[str]) -> None:
    if len(weights) != models or any(len(row) != len(sources) for row in weights):
        raise ValueError(
            f"The weights of a bag must be one row for each of its {models} models, "
            f"with one number for each of {', '.join(sources)}."
        )
    for source, column in zip(sources, zip(*weights, strict=True), strict=True):
        if not (math.isfinite(sum(column)) and sum(column) > 0 <= min(column)):
            raise ValueError(
                f"The weights of {source} in the bag are {list(column)}: they must be 0 or more, "
                "and one of them above."
            )
