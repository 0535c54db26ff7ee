"""Remixing with examples of former batches, for batches too small to be remixed by themselves.

A batch of one cannot make new mixtures of its own stems. `RemixPool` keeps the examples of the
latest batches on the device, and draws every source of a mixture from the new example and the
`size` before it, each with the same probability. So a mixture has the distribution that
`augment.Remix` gives with groups of `size` + 1, whatever the batch. What differs: there each stem
is in one mixture of its group, here it is in one on average.

Which examples a pool holds follows from the place in the training alone, as it forgets at the start
of an epoch; `Recall` (callbacks) fills it again where a run is continued within one.
"""

import torch
from torch import Generator, Tensor


class RemixPool:
    """With probability `proba` for the batch, mixtures of its stems and those of `size` examples
    before. Called as every augmentation of `augment`; remembers, in the type of the stems.
    """

    def __init__(self, size: int, proba: float = 1.0) -> None:
        self.size, self.proba = size, proba
        self.recent: Tensor | None = None  # (up to size, S, C, T), the latest last
        self.position: tuple[int, int] | None = None  # epoch and batch that it is ready for

    def __repr__(self) -> str:
        return f"RemixPool(size={self.size}, proba={self.proba})"

    def forget(self) -> None:
        self.recent = None

    def __call__(self, stems: Tensor, generator: Generator) -> Tensor:
        batch, sources = stems.shape[:2]
        known = stems if self.recent is None else torch.cat([self.recent, stems])
        before = len(known) - batch
        rows = torch.arange(before, before + batch, device=stems.device)[:, None]
        draws = torch.rand(batch + 1, sources, generator=generator, device=stems.device)
        reach = rows.clamp(max=self.size) + 1  # examples that a source is drawn from
        chosen = rows - (draws[:batch] * reach).long()
        self.recent = known[-self.size :].detach()
        columns = torch.arange(sources, device=stems.device)[None]
        return known[torch.where(draws[-1, 0] < self.proba, chosen, rows), columns]
