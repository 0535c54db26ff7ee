"""What is held of a mixture on its way in, and of its stems on their way out.

Positions count samples from the start of the mixture, whatever is held of it at the moment.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


class Incoming:
    """A mixture that comes in blocks (B, C, t), taken in when they are needed.

    Blocks are kept as they are, so they must not change once they were handed over.
    """

    def __init__(self, blocks: Iterable[Tensor]) -> None:
        self._blocks = iter(blocks)
        self._held: list[Tensor] = []  # the mixture from `begin` to `end`
        self.begin, self.end = 0, 0
        self.over = False  # whether the mixture is known to end at `end`

    def reach(self, position: int) -> bool:
        """Whether the mixture has so many samples; blocks are taken in until that is known."""
        while self.end < position and not self.over:
            block = next(self._blocks, None)
            if block is None:
                self.over = True
            else:
                self._held.append(block)
                self.end += block.shape[-1]
        return self.end >= position

    def window(self, start: int, length: int) -> Tensor:
        """``length`` samples from ``start``, with zeros before the mixture and after it."""
        end = start + length
        self.reach(end)
        assert self.begin <= max(0, start), "what is asked for was forgotten"
        inside = self._joined()[..., max(0, start) - self.begin : max(0, end - self.begin)]
        return F.pad(inside, (min(length, max(0, -start)), max(0, end - self.end)))

    def forget(self, end: int) -> None:
        """Let go of the samples before ``end``."""
        surplus = min(end, self.end) - self.begin
        if surplus > 0:
            self._held = [self._joined()[..., surplus:]]
            self.begin += surplus

    def _joined(self) -> Tensor:
        # Only when a chunk is due, however short the blocks: joining copies.
        if len(self._held) > 1:
            self._held = [torch.cat(self._held, dim=-1)]
        return self._held[0]


class Outgoing:
    """Stems (B, S, C, T) that add up from overlapping parts, and go when they are finished.

    There is room for ``room`` samples from the start; for more, it is made when they come.
    """

    def __init__(self, room: int = 0) -> None:
        self._room = room
        self._sums: Tensor | None = None  # the stems from `begin` on
        self.begin = 0

    def add(self, parts: Sequence[tuple[int, Tensor, Tensor]]) -> None:
        """Add parts: where each starts, itself and its weights. What is before `begin` is cut."""
        sums = self._with_room(parts[0][1], max(start + p.shape[-1] for start, p, _ in parts))
        for start, part, weights in parts:
            before = max(0, self.begin - start)
            at, end = start + before - self.begin, start + part.shape[-1] - self.begin
            if end > at:
                sums[..., at:end].addcmul_(part[..., before:], weights[..., before:])
        self._sums = sums

    def _with_room(self, like: Tensor, end: int) -> Tensor:
        size = max(0, end - self.begin)
        if self._sums is None:
            return like.new_zeros(*like.shape[:-1], max(size, self._room))
        lacking = size - self._sums.shape[-1]
        return F.pad(self._sums, (0, lacking)) if lacking > 0 else self._sums

    def take(self, end: int) -> Tensor:
        """The stems from `begin` to ``end``, which no further part may touch."""
        assert self._sums is not None, "there is nothing yet"
        size = end - self.begin
        done, self._sums = self._sums[..., :size], self._sums[..., size:]
        self.begin = end
        return done
