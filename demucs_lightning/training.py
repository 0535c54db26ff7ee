"""LitSeparator: a separation model in training.

A step is a pure function of the weights and of (seed, epoch, batch, process), whatever was drawn
before: a run that is continued from a checkpoint is the run that never stopped."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning import LightningModule
from torch import Generator, Tensor, nn

from demucs_lightning import scores
from demucs_lightning.data.sampler import fold_seed
from demucs_lightning.ema import ModelEMA
from demucs_lightning.losses import SeparationLoss, SVDPenalty
from demucs_lightning.optim import Optimization, steps_of
from demucs_lightning.resume import Position, settle

OWN_WEIGHTS = "weights"


class LitSeparator(LightningModule):
    """Trains ``model`` with ``criterion``, and ``penalty`` if it weighs anything.

    ``augment(stems, generator)`` makes a batch of stems from one; ``valid`` and ``test`` separate,
    ``(model, mixture (1, C, T)) -> (1, S, C, T)``. The weights and each of ``emas`` are candidates:
    validation scores all, and a checkpoint names the best. ``description``, of plain types, goes
    into checkpoints, to build the model again from one.
    """

    def __init__(  # noqa: PLR0913
        self,
        model: nn.Module,
        *,
        criterion: SeparationLoss,
        optim: Optimization,
        valid: Callable[..., Tensor],
        test: Callable[..., Tensor],
        augment: Callable[[Tensor, Generator], Tensor] | None = None,
        penalty: SVDPenalty | None = None,
        emas: Mapping[str, ModelEMA] | None = None,
        seed: int = 0,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.criterion, self.optim, self.augment, self.penalty = criterion, optim, augment, penalty
        self.valid, self.test = valid, test
        self.emas, self.seed, self.description = dict(emas or {}), seed, dict(description or {})
        self.candidate = OWN_WEIGHTS
        self.position: Position | None = (0, 0)  # what the weights have seen; None while they move
        self.validation_due = False
        self.scores: list[scores.Score] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        step = (self.seed, self.current_epoch, batch_idx)
        torch.manual_seed(fold_seed(*step, self.global_rank, "model"))
        stems = batch["stems"].to(self.dtype)
        if self.augment is not None:
            seed = fold_seed(*step, self.global_rank, "augment")
            stems = self.augment(stems, Generator(self.device).manual_seed(seed))
        loss, per_source = self.criterion(self.model(stems.sum(1)).to(stems), stems)
        parts = {"loss": loss.detach(), **dict(zip(self.model.sources, per_source, strict=True))}
        if self.penalty is not None and self.penalty.penalty > 0:
            # Drawn on the CPU and alike on every process, as SVDPenalty asks.
            parts["svd"] = svd = self.penalty(self.model, Generator().manual_seed(fold_seed(*step)))
            loss = loss + self.penalty.penalty * svd
        self.log("train/loss_step", parts["loss"])
        means = {f"train/{name}": part.detach() for name, part in parts.items()}
        self.log_dict(means, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(stems))
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = self.optim.optimizer(self.model)
        scheduler = self.optim.scheduler(optimizer, lambda: steps_of(self.trainer))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.position = None

    def optimizer_step(self, epoch: int, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(epoch, batch_idx, *args, **kwargs)
        last = batch_idx + 1 >= self.trainer.num_training_batches
        for name, ema in self.emas.items():
            if last or not name.startswith("ema_epoch"):
                ema.update(self.model)
        self.position = (epoch + 1, 0) if last else (epoch, batch_idx + 1)

    def on_fit_start(self) -> None:
        for ema in self.emas.values():
            ema.device = self.device
            ema.load_state_dict(ema.state_dict())

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
        best = {f"valid/{key}": value for key, value in means[self.candidate].items()}
        every = {f"candidates/{name}": mean[aim] for name, mean in means.items()}
        self.log_dict({**best, **(every if self.emas else {})}, sync_dist=True)
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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert self.position is not None, "a checkpoint is written between steps"
        emas = {name: ema.state_dict() for name, ema in self.emas.items()}
        state = {"position": list(self.position), "candidate": self.candidate, "emas": emas}
        checkpoint["demucs_lightning"] = {**self.description, **state}
        batches = int(self.trainer.num_training_batches)
        settle(checkpoint, self.position, batches=batches, validate=self.validation_due)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["demucs_lightning"]
        self.position, self.candidate = tuple(state["position"]), state["candidate"]
        for name in self.emas.keys() & state["emas"].keys():
            self.emas[name].load_state_dict(state["emas"][name])
