"""``python train.py``: trains a model, keeps the best, and scores the test set with it."""

import logging
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from demucs_lightning import pretrained, scores
from demucs_lightning.allocator import own_process
from demucs_lightning.callbacks import (
    Evaluations,
    FiniteGuard,
    Progress,
    Recall,
    Stopping,
    Watch,
)
from demucs_lightning.commands import advice, ending, hardware, processes, settings, speed, start
from demucs_lightning.commands.room import alone, check_room
from demucs_lightning.losses import SeparationLoss
from demucs_lightning.optim import Optimization, steps_of
from demucs_lightning.scale import current, is_first, meet_again
from demucs_lightning.scale.sharding import WholeModel
from demucs_lightning.scale.strategies import Sharded
from demucs_lightning.training import LitSeparator

log = logging.getLogger(__name__)

SETTINGS = "settings.yaml"  # in the folder of a run


def main(argv: Sequence[str] | None = None) -> None:
    settings.launch(train, argv, memory=less_memory)


def less_memory(cfg: DictConfig) -> str:
    hydra = HydraConfig.get()
    used = Path(hydra.runtime.output_dir) / SETTINGS  # with the model of the file it started from
    return advice.out_of_memory(
        OmegaConf.load(used) if used.is_file() else cfg, hydra.runtime.choices.get("experiment")
    )


def train(cfg: DictConfig) -> None:
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    with ending.stoppable(), alone(folder):
        run(cfg, folder, given=settings.given(hydra.overrides.task))


def run(cfg: DictConfig, folder: Path, *, given: Collection[str] = ()) -> LitSeparator:
    """Train, score the test set, and leave everything in ``folder``; ``given`` are the settings on
    the command line.
    """
    quieten()
    cfg = ending.continued(cfg, folder)
    resume = cfg.resume_checkpoint
    checkpoint = {} if resume is None else pretrained.read_checkpoint(resume)
    cfg, transfer = start.begin(speed.settled(cfg, checkpoint), checkpoint, given=given)
    description = describe_model(cfg)
    if resume is not None:
        pretrained.check_same_model(resume, checkpoint, description)
        pretrained.check_resumable(resume, checkpoint)
    seed_everything(cfg.seed, workers=True, verbose=False)
    meet_again()
    trainer = build_trainer(cfg, folder)
    module = build_module(cfg, description)
    if transfer is not None:
        module.model.load_state_dict(transfer.weights(module.model.state_dict()))
    if resume is not None:
        pretrained.check_weights(module.model, checkpoint, resume)
    if trainer.precision == "64-true":
        module.double()  # before a checkpoint is loaded, which Lightning would round otherwise
    rank_zero_only(check_room)(cfg, module, folder)
    if cfg.test.every:
        rank_zero_only(hardware.check_test_device)(cfg.test.device)
    if cfg.download and "download" not in cfg.dset:
        log.warning("download=true has no effect: %s is not downloaded", cfg.dset._target_)
    data = instantiate(cfg.data, dset=instantiate(cfg.dset))
    save_settings(cfg, folder / SETTINGS)
    tell_if_finished(trainer, checkpoint)
    fit(trainer, module, data, cfg.resume_checkpoint)
    with ending.guarded(trainer):
        score_best(trainer, module, data)
    log.info("%s", conclusion(trainer))
    return module


def build_module(cfg: DictConfig, description: dict[str, Any]) -> LitSeparator:
    optim = instantiate(cfg.optim)
    model = instantiate(cfg.model, _convert_="all")
    return LitSeparator(
        model,
        criterion=SeparationLoss(optim.loss, list(cfg.weights)),
        optim=optim,
        valid=instantiate(cfg.valid),
        test=instantiate(cfg.test),
        augment=instantiate(cfg.augment) if cfg.data_augmentation else None,
        penalty=instantiate(cfg.svd),
        emas=instantiate(cfg.ema),
        seed=cfg.seed,
        description=description,
        compiled=speed.compiled(model, cfg),
    )


def build_trainer(cfg: DictConfig, folder: Path) -> Trainer:
    shared = processes.arguments(cfg)
    speed.allow_tf32(shared["accelerator"])
    whole = [WholeModel()] if isinstance(shared["strategy"], Sharded) else []
    callbacks = [
        Watch(),
        FiniteGuard(),
        Stopping(current().by),
        *whole,
        Recall(),
        LearningRateMonitor("step"),
        instantiate(cfg.excerpt),
        Announcement(folder),
        Evaluations(folder, every=cfg.test.every, device=cfg.test.device),
    ]
    callbacks += [Progress()] if cfg.trainer.enable_progress_bar else []
    return instantiate(
        cfg.trainer,
        **shared,
        precision=hardware.precision(
            cfg.trainer.precision, shared["accelerator"], shared["devices"]
        ),
        callbacks=[*callbacks, instantiate(cfg.checkpoint, folder=str(folder))],
        logger=instantiate(cfg.logger, save_dir=str(folder)),
        default_root_dir=str(folder),
        use_distributed_sampler=False,
    )


def fit(trainer: Trainer, module: LitSeparator, data: Any, resume: str | None) -> None:
    with ending.guarded(trainer):
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)


@rank_zero_only
def tell_if_finished(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Say so where the run of ``checkpoint``, which may be empty, has come to its end."""
    if not checkpoint:
        return
    for key, most, done in (
        ("epochs", trainer.max_epochs, checkpoint[pretrained.KEY]["position"][0]),
        ("trainer.max_steps", trainer.max_steps, checkpoint["global_step"]),
    ):
        if most is not None and 0 <= most <= done:
            log.info("Nothing is left to train after %s=%d: a larger number goes on.", key, done)


def score_best(trainer: Trainer, module: LitSeparator, data: Any) -> None:
    """Score the test set with the best candidate of the best checkpoint; with the last weights if
    there is none.
    """
    if trainer.limit_test_batches == 0:
        return
    best: Any = trainer.checkpoint_callback
    if best.best_path and Path(best.best_path).is_file():
        checkpoint = pretrained.read_checkpoint(best.best_path)
        pretrained.load_weights(module.model, checkpoint, best.best_path)
        log.info("Scoring the test set with %s", best.best_path)
    trainer.test(module, datamodule=data, verbose=False)
    log.info("%s", scores.table(module.scores))


def conclusion(trainer: Trainer) -> str:
    """What a run that has come to its end leaves, and where."""
    keeper: Any = trainer.checkpoint_callback
    count = trainer.global_step
    parts = [f"Trained {count} step{'' if count == 1 else 's'}"]
    if keeper.best_path and Path(keeper.best_path).is_file():
        parts.append(f"best: {keeper.best_path}")
    if keeper.last.is_file():
        parts.append(f"to continue: {keeper.last}")
    return " · ".join(parts)


def describe_model(cfg: DictConfig) -> dict[str, Any]:
    kwargs: Any = OmegaConf.to_container(cfg.model, resolve=True)
    return pretrained.describe(kwargs.pop("_target_"), kwargs)


@rank_zero_only
def save_settings(cfg: DictConfig, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(OmegaConf.to_yaml(cfg, resolve=True))


class Announcement(Callback):
    """One line that says what trains where on what, and where to look for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @rank_zero_only
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        warn_of_another_curve(trainer, pl_module.optim)
        model, train_set = pl_module.model, trainer.datamodule.train_set
        count = sum(parameter.numel() for parameter in model.parameters())
        size = sum(value.nbytes for value in model.state_dict().values())
        log.info(
            "%s · %s · %s, %.1f M parameters, %.0f MB · %s: %d tracks, %d extracts · %s",
            hardware.device_name(trainer),
            trainer.precision,
            pl_module.description["klass"].rpartition(".")[2],
            count / 1e6,
            size / 1e6,
            type(train_set).__name__,
            len(train_set.tracks),
            len(train_set),
            self.folder,
        )


def warn_of_another_curve(trainer: Any, optim: Optimization) -> None:
    """Say so where a run goes on at another learning rate than the one that was stopped had."""
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    done, before = scheduler.last_epoch, scheduler.get_last_lr()[0]
    total = steps_of(trainer)
    after = scheduler.base_lrs[0] * optim.factor(done, total)
    if not done or math.isclose(before, after, rel_tol=1e-9, abs_tol=1e-15):
        return
    log.warning(
        "The learning rate goes on at %.3g, the run before had %.3g: optim.schedule=%s over %.0f "
        "steps (epochs, trainer.max_steps) and optim.warmup=%s make another curve than it had.",
        *(after, before, optim.schedule, total, optim.warmup),
    )


def quieten() -> None:
    """Leave out what Lightning says about itself, and all but warnings in processes other than the
    first.
    """
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if not is_first():
        logging.getLogger().setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*The number of training batches.*",
        ".*CombinedLoader.*",
        ".*LeafSpec.*",
        ".*Grad strides do not match bucket view strides.*",  # of ddp: one copy more
        ".*returned a view tensor.*",  # of fsdp: no network writes into what a layer returns
    ):
        warnings.filterwarnings("ignore", message)


if __name__ == "__main__":
    own_process()
    main()
