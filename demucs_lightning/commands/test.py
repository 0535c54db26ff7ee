"""``python test.py resume_checkpoint=PATH``: scores a checkpoint on the test set of the settings.

The scores are those of ``demucs-lightning evaluate``; what differs is that the settings are those
of training, and that Lightning starts as many processes as it does there. They share the tracks.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning import LightningModule
from omegaconf import DictConfig
from torch import distributed
from torch.utils.data import DataLoader

from demucs_lightning import pretrained
from demucs_lightning.allocator import own_process
from demucs_lightning.commands import settings, start
from demucs_lightning.commands.evaluate import title_of
from demucs_lightning.commands.scoreboard import Scoreboard, conclude
from demucs_lightning.commands.train import build_trainer, describe_model, quieten
from demucs_lightning.evaluation.estimates import Separated, model_hash
from demucs_lightning.evaluation.plan import TestPlan
from demucs_lightning.evaluation.run import Evaluation, Outcome
from demucs_lightning.evaluation.settled import usual_folder
from demucs_lightning.evaluation.table import aggregate
from demucs_lightning.evaluation.tracks import TrackSet, downloaded, of_settings
from demucs_lightning.pretrained.checkpoints import package_of
from demucs_lightning.separator import described


def main(argv: Sequence[str] | None = None) -> None:
    settings.launch(test, argv)


def test(cfg: DictConfig) -> None:
    quieten()
    if cfg.resume_checkpoint is None:
        raise ValueError("test needs resume_checkpoint=PATH, the checkpoint to score.")
    limit, cfg.trainer.limit_test_batches = cfg.trainer.limit_test_batches, 1.0
    if limit == 0:
        raise ValueError("trainer.limit_test_batches is 0: then there is no track to score.")
    if str(cfg.trainer.strategy).startswith("fsdp"):  # each process needs the whole model
        cfg.trainer.strategy = "auto"
    model = model_of(cfg)
    trainer = build_trainer(cfg, Path(HydraConfig.get().runtime.output_dir))
    module = Scoring(
        model,
        plan=instantiate(cfg.test),
        checkpoint=Path(cfg.resume_checkpoint),
        dset=instantiate(cfg.dset),
        limit=limit,
        precision=precision_of(cfg.trainer.precision),
    )
    trainer.test(module, verbose=False)
    if trainer.is_global_zero and module.outcome is not None:
        conclude(module.outcome, module.wanted, report=True)
        if module.outcome.faults:
            sys.exit(1)


def model_of(cfg: DictConfig) -> Any:
    """The model of the checkpoint with its best weights; the settings get what it says of it."""
    checkpoint = pretrained.read_checkpoint(cfg.resume_checkpoint)
    if checkpoint[pretrained.KEY]["klass"] in pretrained.CLASSES:
        package = package_of(checkpoint, cfg.resume_checkpoint)
        pretrained.check_fits(package)
        cfg.model = start.as_settings(package)
        for key in ("sources", "samplerate", "audio_channels"):
            cfg[key] = package.argument(key)
    pretrained.check_same_model(cfg.resume_checkpoint, checkpoint, describe_model(cfg))
    model = instantiate(cfg.model, _convert_="all")
    pretrained.load_weights(model, checkpoint, cfg.resume_checkpoint)
    return model.eval()


class Scoring(LightningModule):
    """Lightning sees one step in each process, in which it scores what the others don't.

    ``dset(subset=..., segment=...)`` opens the data set, which one process of a machine downloads
    first; ``limit`` is how many of its tracks count, or which share of them.
    """

    def __init__(  # noqa: PLR0913
        self,
        model: Any,
        *,
        plan: TestPlan,
        checkpoint: Path,
        dset: Any,
        limit: int | float,
        precision: str,
    ) -> None:
        super().__init__()
        self.model, self.plan, self.checkpoint = model, plan, checkpoint
        self.digest, self.limit, self.precision = model_hash(model), limit, precision
        self._dset = dset
        self._evaluation: Evaluation | None = None
        self.outcome: Outcome | None = None
        self.wanted: list[str] = []

    def prepare_data(self) -> None:
        self._open()

    def test_dataloader(self) -> Any:
        return DataLoader([0])  # pyright: ignore[reportArgumentType]

    def test_step(self, batch: Any, batch_idx: int) -> None:
        data = self._open()
        judged = Separated(
            self.model,
            name=title_of(str(self.checkpoint)),
            digest=self.digest,
            device=self.device,
            settings=self.plan.settings(self.precision),
        )
        name = f"{self.checkpoint.stem}-{self.digest[:8]}"
        beside = usual_folder(self.checkpoint.parent / "results", data, name)
        folder = beside if self.plan.folder is None else Path(self.plan.folder)
        self._evaluation = Evaluation(folder, [judged], data)
        share = isinstance(self.limit, float)
        count = max(1, round(self.limit * len(data))) if share else int(self.limit)
        self.wanted, separator = data.names[:count], judged.separator
        part = data.only(self.wanted)
        place = f"{described(separator.devices)} in {separator.precision}"
        with (
            torch.inference_mode(False),
            torch.autocast(self.device.type, enabled=False),  # the Separator has its own way
            Scoreboard(self._evaluation, part, place=place) as board,
        ):
            self._evaluation.run(part, board)

    def on_test_epoch_end(self) -> None:
        assert self._evaluation is not None
        self.trainer.strategy.barrier()
        outcome = self._evaluation.outcome()
        self.outcome = replace(outcome, faults=of_all(outcome.faults))
        results, scores = self.outcome.results, {}
        for metric, kind in (("nsdr", "mean"), ("sdr", "median")):
            values = aggregate(results, metric, kind)
            named = {f"test/{metric}_{source}": value for source, value in values.items()}
            scores |= {f"test/{metric}": named.pop(f"test/{metric}_overall"), **named}
        for logger in self.trainer.loggers:
            logger.log_metrics(scores)

    def _open(self) -> TrackSet:
        opened = of_settings(self._dset, "test")
        self._dset = downloaded(self._dset)  # once is enough
        return opened


def of_all(faults: dict[str, str]) -> dict[str, str]:
    """Those of all processes, as what has failed in one may not have been tried in another."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return faults
    parts: list[dict[str, str]] = [{} for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(parts, faults)
    return {name: why for part in parts for name, why in part.items()}


def precision_of(wanted: str | int) -> str:
    """That of a `Separator` for ``trainer.precision``; fp32 unless bf16 is asked for."""
    return "bf16" if str(wanted).startswith("bf16") else "fp32"


if __name__ == "__main__":
    own_process()
    main()
