"""LitSeparator: a separation model in training.

A step is a pure function of the weights and of (seed, epoch, batch, process), whatever was drawn
before: a run that is continued from a checkpoint is the run that never stopped."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn

from demucs_lightning.data.sampler import fold_seed
from demucs_lightning.ema import ModelEMA
from demucs_lightning.losses import SeparationLoss, SVDPenalty
from demucs_lightning.optim import Optimization, steps_of
from demucs_lightning.resume import Position, settle
from demucs_lightning.validation import ScoredModule


class LitSeparator(ScoredModule):
    """Trains ``model`` with ``criterion``, and ``penalty`` if it weighs anything.

    ``augment(stems, generator)`` makes a batch of stems from one; for ``valid``, ``test`` and
    ``emas`` see ``ScoredModule``. ``description``, of plain types, goes
    into checkpoints, to build the model again from one. ``compiled``, no module, is called in a
    training step in place of the model.
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
        compiled: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(model, criterion=criterion, valid=valid, test=test, emas=emas)
        self.optim, self.augment, self.penalty = optim, augment, penalty
        self.compiled, self.seed, self.description = compiled, seed, dict(description or {})
        self.position: Position | None = (0, 0)  # what the weights have seen; None while they move

    def augmented(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The stems of a batch of this epoch as the model is to see them."""
        stems = batch["stems"].to(self.dtype)
        if self.augment is None:
            return stems
        place = (self.seed, self.current_epoch, batch_idx, self.global_rank)
        generator = Generator(self.device).manual_seed(fold_seed(*place, "augment"))
        with torch.autocast(self.device.type, enabled=False):
            return self.augment(stems, generator)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        step = (self.seed, self.current_epoch, batch_idx)
        torch.manual_seed(fold_seed(*step, self.global_rank, "model"))
        stems = self.augmented(batch, batch_idx)
        estimates = (self.compiled or self.model)(stems.sum(1))
        loss, per_source = self.criterion(estimates.to(stems), stems)
        parts = {"loss": loss.detach(), **dict(zip(self.model.sources, per_source, strict=True))}
        if self.penalty is not None and self.penalty.penalty > 0:
            # On the CPU and alike on every process, as SVDPenalty asks.
            parts["svd"] = svd = self.penalty(self.model, Generator().manual_seed(fold_seed(*step)))
            loss = loss + self.penalty.penalty * svd
        self.log("train/loss_step", parts["loss"])
        means = {f"train/{name}": part.detach() for name, part in parts.items()}
        self.log_dict(means, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(stems))
        return loss

    def configure_optimizers(self) -> Any:
        # Under fp16 Lightning clips no gradient of a fused optimizer, which unscales them itself.
        clips = self.trainer.precision == "16-mixed" and bool(self.trainer.gradient_clip_val)
        optimizer = self.optim.optimizer(self.model, fused=not clips)
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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert self.position is not None, "a checkpoint is written between steps"
        emas = {name: ema.state_dict() for name, ema in self.emas.items()}
        state = {"position": list(self.position), "candidate": self.candidate, "emas": emas}
        state["precision"] = self.trainer.precision
        checkpoint["demucs_lightning"] = {**self.description, **state}
        batches = int(self.trainer.num_training_batches)
        settle(checkpoint, self.position, batches=batches, validate=self.validation_due)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["demucs_lightning"]
        self.position, self.candidate = tuple(state["position"]), state["candidate"]
        self.optim.check_resumed(checkpoint.get("optimizer_states", []))
        for name in self.emas.keys() & state["emas"].keys():
            self.emas[name].load_state_dict(state["emas"][name])
