"""How a model in training is scored: on the validation tracks after an epoch, on the test tracks at
the end, each track once in whichever process."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning import LightningModule
from torch import Tensor, nn

from demucs_lightning import scores
from demucs_lightning.ema import ModelEMA
from demucs_lightning.losses import SeparationLoss

OWN_WEIGHTS = "weights"


class ScoredModule(LightningModule):
    """Scores ``model``. ``valid`` and ``test`` separate, ``(model, mixture (1, C, T)) -> (1, S, C,
    T)``. The weights and each of ``emas`` are candidates: validation scores all, ``candidate`` is
    the best, and ``validation_due`` says that one has begun and is not done.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        criterion: SeparationLoss,
        valid: Callable[..., Tensor],
        test: Callable[..., Tensor],
        emas: Mapping[str, ModelEMA] | None = None,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.criterion, self.valid, self.test = criterion, valid, test
        self.emas = dict(emas or {})
        self.candidate = OWN_WEIGHTS
        self.validation_due = False
        self.scores: list[scores.Score] = []

    def on_validation_start(self) -> None:
        self.scores, self.validation_due = [], not self.trainer.sanity_checking

    def validation_step(self, batch: dict[str, Any] | None, batch_idx: int) -> Tensor | None:
        if batch is None:  # another process has one track more
            return None
        estimates = self._score(batch, OWN_WEIGHTS, nullcontext())
        for name, ema in self.emas.items():
            if ema.state:
                self._score(batch, name, ema.swapped(self.model))
        return estimates

    def on_validation_epoch_end(self) -> None:
        self.scores = scores.gathered(self.scores)
        means = scores.by_candidate(self.scores)
        aim = scores.aim(self.model.sources, self.criterion.weights.tolist())
        self.candidate = max(means, key=lambda name: means[name][aim])
        found = {f"valid/{key}": value for key, value in means[self.candidate].items()}
        if self.emas:
            found |= {f"candidates/{name}": mean[aim] for name, mean in means.items()}
        self.log_dict(found, sync_dist=True)
        self.validation_due = False

    def test_step(self, batch: dict[str, Any] | None, batch_idx: int) -> None:
        self.scores = self.scores if batch_idx else []
        if batch is not None:
            self._score(batch, self.candidate, nullcontext())

    def on_test_epoch_end(self) -> None:
        self.scores = scores.gathered(self.scores)
        means = scores.averages(self.scores).items()
        self.log_dict({f"test/{key}": value for key, value in means}, sync_dist=True)

    def _score(self, batch: dict[str, Any], name: str, use: AbstractContextManager[None]) -> Tensor:
        separate = self.test if self.trainer.testing else self.valid
        mixture, stems = batch["mixture"].to(self.dtype), batch["stems"].to(self.dtype)
        with use:
            estimates = separate(self.model, mixture)
        loss = self.criterion(estimates, stems)[0].item()
        nsdr = scores.score_sources(batch, estimates, self.model.sources)
        self.scores.append(scores.Score(batch["track"][0], name, loss, nsdr))
        return estimates
