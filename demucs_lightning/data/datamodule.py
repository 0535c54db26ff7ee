"""From a data set of tracks to batches on the device.

Training batches are ``dict(stems (B, S, C, T), track)``, validation and test batches, one track
each, ``dict(mixture (1, C, T), stems (1, S, C, T), silent (S,), track)``; float32, normalised by
the mean and deviation of each track. ``silent``, bool, says which stems are zero throughout, as
normalising hides it. Files are read as they are stored and converted on the device.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from lightning import LightningDataModule

from demucs_lightning.data.extracts import normalized
from demucs_lightning.data.loader import TrackLoader, TrainingLoader
from demucs_lightning.data.sampler import ExtractOrder


class SeparationData(LightningDataModule):
    """Training, validation and test tracks of ``dset(subset=..., segment=...)``.

    ``segment`` is in seconds, ``batch_size`` counts the extracts of one process. Data are fetched
    and indexed by one process of a machine, in ``prepare_data``; every process then opens them in
    ``setup``.
    """

    def __init__(
        self,
        dset: Callable[..., Any],
        *,
        segment: float,
        batch_size: int,
        seed: int,
        workers: int,
        train_subset: str,
    ) -> None:
        super().__init__()
        self.dset, self.train_subset = dset, train_subset
        self.segment, self.batch_size, self.seed, self.workers = segment, batch_size, seed, workers
        self.train_set: Any = None
        self.valid_set: Any = None
        self.test_set: Any = None

    def prepare_data(self) -> None:
        trainer = self.trainer
        if trainer is None or trainer.state.fn != "test":
            self._open_fit()
        if trainer is not None and trainer.limit_test_batches != 0:
            self._open_test()  # before training, too: days later is late to miss it

    def setup(self, stage: str) -> None:
        if stage == "test":
            self.test_set = self.test_set or self._open_test()
        elif self.train_set is None:
            self.train_set, self.valid_set = self._open_fit()

    def _open_fit(self) -> tuple[Any, Any]:
        train_set = self._open(self.train_subset, self.segment)
        return train_set, self._open("validation", None)

    def _open_test(self) -> Any:
        return self._open("test", None)

    def _open(self, subset: str, segment: float | None) -> Any:
        opened = self.dset(subset=subset, segment=segment)
        if "download" in getattr(self.dset, "keywords", {}):  # once is enough
            self.dset = partial(self.dset, download=False)
        return opened

    def train_dataloader(self) -> TrainingLoader:
        trainer, loop = self._trainer(), self._trainer().fit_loop
        done = loop.epoch_loop.batch_progress.current.completed if loop.restarting else 0
        return self._training_loader((trainer.current_epoch, done), self.workers)

    def training_batch(self, epoch: int, index: int) -> Any:
        """The batch ``index`` of ``epoch`` once more, not on the device yet."""
        return next(iter(self._training_loader((epoch, index), 0)))

    def _training_loader(self, position: tuple[int, int], threads: int) -> TrainingLoader:
        trainer = self._trainer()
        order = ExtractOrder(
            len(self.train_set),
            self.batch_size,
            seed=self.seed,
            share=(trainer.global_rank, trainer.world_size),
            position=position,
        )
        pin = trainer.strategy.root_device.type == "cuda"
        return TrainingLoader(self.train_set, order, threads=threads, pin=pin)

    def val_dataloader(self) -> TrackLoader:
        return self._tracks(self.valid_set)

    def test_dataloader(self) -> TrackLoader:
        return self._tracks(self.test_set)

    def _tracks(self, dataset: Any) -> TrackLoader:
        share = (self._trainer().global_rank, self._trainer().world_size)
        return TrackLoader(dataset, share=share, threads=min(self.workers, 1))

    def _trainer(self) -> Any:
        assert self.trainer is not None, "the data module needs a trainer"
        return self.trainer

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if batch is None:
            return None
        stems, track = normalized(batch), batch["track"]
        if "mixture" not in batch:
            return {"stems": stems, "track": track}
        mixture = (batch["mixture"] - batch["mean"]) / batch["std"]
        silent = (batch["stems"] == 0).flatten(1).all(1)
        whole = {"mixture": mixture[None], "stems": stems[None]}
        return {**whole, "silent": silent, "track": [track]}
