"""What a value may be: its type is that of the default in conf/, and the parts that are cheap to
build are built.
"""

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from demucs_lightning.commands import hardware
from demucs_lightning.compiled import MAKERS
from demucs_lightning.losses import SeparationLoss
from demucs_lightning.models.recompute import MEMORY

WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
}
ACCEPTED = {bool: bool, int: int, float: (int, float), str: (str, int, float), list: list}
NUMBERS = (  # whole in conf/, but need not be
    "segment",
    "trainer.max_time",
    "trainer.limit_train_batches",
    "trainer.limit_test_batches",
)
ANY = (  # more than one type; what takes them says what is wrong
    "compile",
    "gpus",
    "memory",
    "model.memory",
    "optim.state",
    "trainer.check_val_every_n_epoch",
    "trainer.deterministic",
    "trainer.gradient_clip_val",
    "trainer.precision",
    "trainer.strategy",
)
POSITIVE = (
    *("samplerate", "segment", "epochs", "batch_size", "dset.shift", "model.segment"),
    *("valid.segment", "valid.batch_size", "test.segment", "test.batch_size"),
    *("distributed.timeout", "trainer.num_nodes", "trainer.accumulate_grad_batches"),
)
NOT_NEGATIVE = (
    "data.workers",
    "checkpoint.every_n_steps",
    "checkpoint.every_n_minutes",
    "excerpt.every",
    "valid.shifts",
    "test.shifts",
    "test.every",
)
SHARES = ("valid.overlap", "test.overlap")
ACCELERATORS = (None, "cpu", "gpu", "cuda", "mps", "auto")
MAX_SEED = 2**32 - 1


def check_type(key: str, value: Any, default: Any) -> None:
    """Raise ValueError unless ``value`` is of the type of ``default``; None goes with anything."""
    if default is None or key in ANY or isinstance(default, dict):
        return
    kind = float if key in NUMBERS else type(default)
    kind = float if key.endswith(".segment") else kind
    if not isinstance(value, ACCEPTED[kind]) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{key} is {value!r}: it must be {WORDS[kind]}.")


def check_values(cfg: DictConfig) -> None:
    """Raise ValueError for values that are out of range or do not go together; builds nothing that
    is slow.
    """
    for keys, allowed, words in (
        (POSITIVE, lambda value: value > 0, "above 0"),
        (NOT_NEGATIVE, lambda value: value >= 0, "0 or more"),
        (SHARES, lambda value: 0 <= value < 1, "at least 0 and below 1"),
        (("seed",), lambda value: 0 <= value <= MAX_SEED, f"from 0 to {MAX_SEED}"),
    ):
        for key in keys:
            value = OmegaConf.select(cfg, key)
            if value is not None:
                _check_number(key, value, allowed, words)
    if not str(cfg.resume_checkpoint).strip():
        raise ValueError("resume_checkpoint is empty: it must be a checkpoint (.ckpt), or null.")
    if cfg.init_from is not None and not isinstance(cfg.init_from, str):
        raise ValueError(
            f"init_from is {cfg.init_from!r}: it must be text, in quotes if it looks like a number."
        )
    _check_sources(list(cfg.sources), list(cfg.weights))
    if cfg.audio_channels not in (1, 2):
        raise ValueError(f"audio_channels is {cfg.audio_channels}: it must be 1 or 2.")
    _check_gpus(cfg.gpus)
    _check_devices(cfg.trainer.devices)
    _check_choice("memory", cfg.memory, MEMORY)
    _check_choice("model.memory", cfg.model.get("memory", cfg.memory), MEMORY)
    _check_choice("compile", str(cfg.compile).lower(), ("false", *MAKERS))
    _check_choice("trainer.accelerator", cfg.trainer.accelerator, ACCELERATORS)
    nsdr = [f"valid/nsdr_{source}" for source in cfg.sources]
    _check_choice("checkpoint.monitor", cfg.checkpoint.monitor, ("valid/nsdr", "valid/loss", *nsdr))
    hardware.precision(cfg.trainer.precision, "cpu")
    optim = instantiate(cfg.optim)
    SeparationLoss(optim.loss, list(cfg.weights))
    instantiate(cfg.ema)
    instantiate(cfg.svd)
    instantiate(cfg.checkpoint, folder="")
    instantiate(cfg.excerpt)
    if cfg.data_augmentation:
        augment = instantiate(cfg.augment)
        augment.check_batch(cfg.batch_size)
        length = int(cfg.segment * cfg.samplerate)
        if augment.output_length(length) <= 0:
            raise ValueError(
                f"segment={cfg.segment} leaves nothing after augment.shift={cfg.augment.shift}: "
                "make it longer."
            )
    if cfg.logger._target_.endswith("WandbLogger") and find_spec("wandb") is None:
        raise ValueError(
            'logger=wandb needs the package wandb: pip install "demucs-lightning[wandb]".'
        )


def _check_number(key: str, value: Any, allowed: Callable[[Any], bool], words: str) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{key} is {value!r}: it must be a number.")
    if not math.isfinite(value):
        raise ValueError(f"{key} is {value}: it must be a finite number {words}.")
    if not allowed(value):
        raise ValueError(f"{key} is {value}: it must be {words}.")


def _check_choice(key: str, value: Any, choices: Sequence[Any]) -> None:
    if value not in choices:
        names = ", ".join("null" if each is None else each for each in choices)
        shown = "null" if value is None else repr(value)
        raise ValueError(f"{key} is {shown}: it must be one of {names}.")


def _check_sources(sources: list[Any], weights: list[Any]) -> None:
    if (
        not sources
        or len(set(sources)) < len(sources)
        or not all(isinstance(name, str) for name in sources)
    ):
        raise ValueError(
            f"sources is {sources}: it must be a list of different names, such as [drums,bass]."
        )
    if len(weights) != len(sources):
        raise ValueError(
            f"weights has {len(weights)} values: it must have one for each of the sources "
            f"{', '.join(sources)}."
        )
    if not all(
        isinstance(weight, int | float) and not isinstance(weight, bool) for weight in weights
    ):
        raise ValueError(f"weights is {weights}: it must be a list of numbers.")


def _check_gpus(gpus: Any) -> None:
    indices = list(gpus) if OmegaConf.is_list(gpus) else [gpus]
    whole = all(
        isinstance(index, int) and not isinstance(index, bool) and index >= 0 for index in indices
    )
    if not indices or not whole or len(set(indices)) < len(indices):
        raise ValueError(
            f"gpus is {gpus}: it must be a number of GPUs (gpus=2, or 0 for the CPU) or a list "
            "(gpus=[0,2])."
        )


def _check_devices(devices: Any) -> None:
    if devices is not None and not OmegaConf.is_list(devices):
        _check_number("trainer.devices", devices, lambda value: value > 0, "above 0")
