"""Where a run starts from: ``init_from``, a released model, a checkpoint or a file of weights.

The architecture is the file's. Of the settings, ``sources`` and ``segment`` are the run's, and so
is what the command line says of ``model.*``. A run that is resumed takes the architecture from its
own checkpoint, so that the same command line continues it. What can be wrong is found before data
are downloaded and the model is built. On every machine the first process fetches what is to be
fetched, and the others find it in the cache.
"""

import inspect
import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

from omegaconf import DictConfig, OmegaConf

from demucs_lightning import pretrained
from demucs_lightning.commands.settings import conf_folder
from demucs_lightning.pretrained.checkpoints import package_of
from demucs_lightning.pretrained.package import Package
from demucs_lightning.pretrained.stems import Transfer, plan
from demucs_lightning.scale import first_of_machine

log = logging.getLogger(__name__)

ADVICE = ", or give weights that are 0 for all sources but one"


def begin(
    cfg: DictConfig, checkpoint: Mapping[str, Any], *, given: Collection[str]
) -> tuple[DictConfig, Transfer | None]:
    """The settings with the model of ``init_from``, and the weights that training starts with.

    ``checkpoint`` is the content of ``resume_checkpoint``, or empty; ``given`` are the settings on
    the command line. Raises what ``pretrained.find`` raises, and ValueError where the file and the
    settings contradict each other.
    """
    name, repo = cfg.init_from, cfg.init_repo
    if name is None:
        if repo is not None:
            log.warning("init_repo has no effect without init_from.")
        return cfg, None
    if checkpoint:
        resume = cfg.resume_checkpoint
        log.info("init_from=%s is not read: training goes on with the model of %s", name, resume)
        return rebuilt(cfg, package_of(checkpoint, resume), given), None
    with first_of_machine(f"found {name}"):
        release = pretrained.find(name, repo=repo)
    wanted = [s for s, weight in zip(cfg.sources, cfg.weights, strict=True) if weight > 0]
    only = wanted[0] if len(wanted) == 1 else None
    package = pretrained.member(release, only, advice=ADVICE)
    package = replace(package, origin=_label(name, package))
    cfg = rebuilt(cfg, package, given)
    theirs = package.kwargs["sources"]
    if not set(theirs) & set(cfg.sources):
        raise ValueError(
            f"{package.origin} separates {', '.join(theirs)}, none of which is in "
            f"sources=[{','.join(cfg.sources)}]: name those alike that are to be carried over."
        )
    kwargs: Any = OmegaConf.to_container(cfg.model, resolve=True)
    kwargs.pop("_target_")
    transfer = plan(package, kwargs)
    log.info("Starting from %s, the model is %s:", package.origin, package.klass)
    for line in [*transfer.decisions, *_segments(package, kwargs["segment"])]:
        log.info("  %s", line)
    return cfg, transfer


def rebuilt(cfg: DictConfig, package: Package, given: Collection[str]) -> DictConfig:
    """A copy of the settings whose ``model`` is that of ``package``, for the sources and the
    segment of the run, with what ``given`` has of ``model.*``.

    Raises ValueError, naming both sides, where ``given`` has another model, or the package another
    sample rate or number of channels than the settings.
    """
    klass = package.klass
    asked = pretrained.describe(cfg.model._target_, {})["klass"]
    if asked != klass and {"model", "model._target_"} & set(given):
        raise ValueError(
            f"{package.origin} holds the model {klass}, but model={asked} was asked for: leave "
            "model out, or start from a file of that model."
        )
    pretrained.check_fits(package)
    for key, unit in (("samplerate", "Hz"), ("audio_channels", "channels")):
        theirs = package.argument(key)
        if theirs != cfg[key]:
            raise ValueError(
                f"{package.origin} is for {theirs} {unit}, but {key} is {cfg[key]}: set "
                f"{key}={theirs}."
            )
    changed = [key for key in given if key.startswith("model.") and key != "model._target_"]
    run = {"sources": "${sources}", "segment": _segment(klass), "memory": "${memory}"}
    model = {**as_settings(package), **run}
    settled: Any = OmegaConf.to_container(cfg.model, resolve=True)
    known = inspect.signature(pretrained.CLASSES[klass]).parameters
    for key in changed:
        name = key.split(".")[1]
        if name not in known:
            raise ValueError(
                f"{key} is no argument of {klass}, the model that {package.origin} holds."
            )
        model[name] = settled[name]
    cfg = cfg.copy()
    cfg.model = model
    return cfg


def as_settings(package: Package) -> dict[str, Any]:
    """``_target_`` and arguments of a package, as settings that mean no more than they say.

    Raises ValueError, naming the origin, for an argument that settings would take for an
    instruction: a mapping, which may name something to call, or text with a reference.
    """
    model = {"_target_": f"demucs_lightning.models.{package.klass}"}
    return model | {name: _plain(value, name, package) for name, value in package.kwargs.items()}


def _plain(value: Any, name: str, package: Package) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(each, name, package) for each in value]
    if isinstance(value, Fraction):
        return int(value) if value.denominator == 1 else float(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str) and "${" not in value:
        return value
    raise ValueError(f"{package.origin} is damaged: its {name} is no plain value.")


def _segment(klass: str) -> Any:
    """How the segment of a model follows from the settings, as conf/model says it of its class."""
    conf = OmegaConf.load(conf_folder() / "model" / f"{klass}.yaml")
    raw: Any = OmegaConf.to_container(conf, resolve=False)
    return raw["segment"]


def _segments(package: Package, ours: Any) -> list[str]:
    """A line where the model separates at another segment than in the file; both in seconds."""
    theirs = float(package.argument("segment"))
    alike = math.isclose(ours, theirs, rel_tol=1e-6)
    return [] if alike else [f"segment: {ours:g} s here, {theirs:g} s in the file"]


def _label(name: str, package: Package) -> str:
    """What to call the package: as the user did, with the signature if that is something else."""
    signature = package.signature
    return name if signature in name else f"{name} ({signature})"
