"""Which parts of a mixture are wanted, and how they are made of what the model gives."""

import copy
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from demucs_lightning.separation.bags import chosen

OTHER = "other"
METHODS = ("add", "minus", "none")
SINGLE = 2**24  # steps of full scale that float32 holds


@dataclass(frozen=True)
class Choice:
    """The parts that come out.

    ``stems``: some of the model's, None: all. ``two_stems``: one of them and the rest, by
    ``other_method``: ``add``, the sum of all others, as no_STEM; ``minus``, the mixture without it,
    as minus_STEM; ``none``, no rest. ``exact_sum``: what the parts lack of the mixture goes to the
    rest or to the stem `other`, or equally to all where there is none.
    """

    stems: Sequence[str] | None = None
    two_stems: str | None = None
    other_method: str = "add"
    exact_sum: bool = False


class Parts:
    """A `Choice` for a model: ``names`` of the parts, and the ``stems`` that the model computes.

    Raises ValueError for an unknown stem and for choices that exclude one another.
    """

    def __init__(self, choice: Choice, model: Any) -> None:
        self.choice = choice
        one = choice.two_stems
        if choice.other_method not in METHODS:
            raise ValueError(
                f"other_method is {choice.other_method!r}: it must be one of {', '.join(METHODS)}."
            )
        if not isinstance(choice.stems, Iterable | None):
            raise ValueError(f"stems is {choice.stems!r}: it must be a list of names.")
        if one is None:
            self.stems = self.names = chosen(model, choice.stems)
        else:
            if choice.stems is not None:
                raise ValueError("stems and two_stems exclude one another: give one of them.")
            self.stems, self.names = _pair(chosen(model, [one])[0], choice.other_method, model)
        if twice := [name for name in self.names if self.names.count(name) > 1]:
            raise ValueError(f"stems names {twice[0]!r} twice.")
        whole = set(self.stems) == set(model.sources) or len(self.names) > len(self.stems)
        if choice.exact_sum and not whole:
            raise ValueError(
                f"exact_sum needs all parts of the mixture, and only {', '.join(self.names)} "
                "would come out."
            )

    @property
    def needs_mixture(self) -> bool:
        """Whether the parts can't be made of the stems alone."""
        return self.choice.exact_sum or self._minus

    @property
    def _minus(self) -> bool:
        return self.choice.two_stems is not None and self.choice.other_method == "minus"

    def only(self, names: Collection[str]) -> "Parts":
        """For some of the names, and no more stems than they are made of."""
        fewer, one = copy.copy(self), self.choice.two_stems
        if self.choice.exact_sum:  # each part depends on the others
            return fewer
        fewer.names = [name for name in self.names if name in names]
        if one is None:
            fewer.stems = list(fewer.names)
        elif self.choice.other_method == "add":
            fewer.stems = [name for name in self.stems if fewer._serves(name)]
        return fewer

    def _serves(self, stem: str) -> bool:
        """Whether one stem and the rest, or those of them that are wanted, are made of it."""
        own, rest = self.choice.two_stems, f"no_{self.choice.two_stems}"
        return own in self.names if stem == own else rest in self.names

    def made(self, stems: Tensor, mixture: Tensor | None) -> Tensor:
        """The parts (P, C, t) of stems (S, C, t) and the mixture (C, t), where it is needed."""
        if self.choice.two_stems is not None:
            stems = torch.stack([self._part(name, stems, mixture) for name in self.names])
        if self.choice.exact_sum:
            assert mixture is not None
            stems = self.completed(stems, mixture)
        return stems

    def _part(self, name: str, stems: Tensor, mixture: Tensor | None) -> Tensor:
        """One stem, or the rest."""
        one = self.choice.two_stems
        if name == one:
            return stems[self.stems.index(name)]
        if self._minus:
            assert mixture is not None
            return mixture - stems[0]
        return stems[[at for at, stem in enumerate(self.stems) if stem != one]].sum(dim=0)

    def completed(self, parts: Tensor, mixture: Tensor, steps: int | None = None) -> Tensor:
        """The parts (P, C, t), summing up to the mixture (C, t): to float32's rounding, or exactly
        in units of 1 / ``steps`` of full scale, a power of two; float64 where float32 is too short
        for that."""
        if steps is not None:
            kind = torch.float64 if steps > SINGLE else torch.float32
            parts, mixture = ((each.to(kind) * steps).round() for each in (parts, mixture))
        lack = mixture - parts.sum(dim=0, dtype=torch.float64)
        keeper = self._keeper()
        completed = parts.clone()
        if keeper is not None:
            completed[keeper] = parts[keeper] + lack
        elif steps is None:
            completed += lack / len(parts)
        else:  # whole steps: the first parts have one more
            completed += lack.div(len(parts), rounding_mode="floor")
            for part, rest in zip(completed, range(len(parts)), strict=True):
                part += lack.remainder(len(parts)) > rest
        return completed / (steps or 1)

    def _keeper(self) -> int | None:
        if self.choice.two_stems is not None:
            return 1
        return self.names.index(OTHER) if OTHER in self.names else None


def _pair(one: str, method: str, model: Any) -> tuple[list[str], list[str]]:
    """The stems to compute and the names of the parts, for one stem and the rest."""
    if method == "add":
        return list(model.sources), [one, f"no_{one}"]
    return [one], [one] if method == "none" else [one, f"minus_{one}"]
