"""How a run tests its model: the settings ``test.*``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from demucs_lightning.evaluation.estimates import Settings
from demucs_lightning.separation import separate


@dataclass(frozen=True, kw_only=True)
class TestPlan:
    """Called with a model and a normalised mixture (B, C, T), it separates it as `separate` does.

    ``every`` so many epochs of training (0: never), a process of its own computes all metrics of
    the test set on ``device``. ``folder`` is for the results of test.py; None: beside the
    checkpoint.
    """

    segment: float | None
    overlap: float
    shifts: int
    batch_size: int | None
    seed: int
    every: int
    device: str
    folder: str | None

    __test__ = False  # pytest takes a class of such a name for tests

    def __call__(
        self, model: Any, mixture: Tensor, *, progress: Callable[[float], None] | None = None
    ) -> Tensor:
        return separate(
            model,
            mixture,
            segment=self.segment,
            overlap=self.overlap,
            shifts=self.shifts,
            batch_size=self.batch_size,
            seed=self.seed,
            progress=progress,
        )

    def settings(self, precision: str) -> Settings:
        """The same for `Separated`."""
        return Settings(
            segment=self.segment,
            overlap=self.overlap,
            shifts=self.shifts,
            batch_size=self.batch_size,
            seed=self.seed,
            precision=precision,
        )
