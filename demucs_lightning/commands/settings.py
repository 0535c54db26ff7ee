"""From the command line to settings that are known to be right, or one sentence that says what is
wrong.

Hydra composes the settings. Before it starts a job they are composed here once, and checked in this
project's own words: a key that does not exist, a choice that does not exist, a value of the wrong
type or out of range.
"""

import difflib
import functools
import inspect
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import (
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from demucs_lightning import scores
from demucs_lightning.commands.checks import check_type, check_values
from demucs_lightning.commands.explain import explained
from demucs_lightning.commands.options import refuse
from demucs_lightning.pretrained import CLASSES
from demucs_lightning.scale import current, started

GROUPS = ("model", "dset", "logger", "experiment")
RESERVED = (
    "callbacks",
    "default_root_dir",
    "logger",
    "plugins",
    "use_distributed_sampler",
)  # of trainer
TEXT = ("init_from",)  # is text even where it looks like a number, as the signature 955717e8 does
VERSION = "1.3"  # of Hydra's behaviour


def trained_segment(segment: Any, samplerate: Any, augmented: Any, augment: DictConfig) -> Any:
    """Seconds that ``augment`` leaves of a training extract, where it is used; ``segment`` where
    a value is wrong, which is said elsewhere.
    """
    try:
        length = instantiate(augment).output_length(int(segment * samplerate)) if augmented else 0
    except (TypeError, ValueError, OverflowError, InstantiationException):
        return segment
    return length / samplerate if length > 0 else segment


def monitored(sources: Any, weights: Any) -> str:
    """What the best checkpoint is best in; a value that is wrong is said elsewhere."""
    try:
        return f"valid/{scores.aim(sources, weights)}"
    except (TypeError, ValueError):
        return "valid/nsdr"


OmegaConf.register_new_resolver("trained_segment", trained_segment, replace=True)
OmegaConf.register_new_resolver("times", lambda factor, value: factor * value, replace=True)
OmegaConf.register_new_resolver("ones", lambda values: [1.0] * len(values), replace=True)
OmegaConf.register_new_resolver("monitored", monitored, replace=True)
OmegaConf.register_new_resolver(
    "run_name", lambda start, model: Path(str(start)).stem if start else model, replace=True
)
OmegaConf.register_new_resolver("started", started, use_cache=True, replace=True)

Task = Callable[[DictConfig], None]


def conf_folder() -> Path:
    """``conf`` of the checkout, or its copy inside the installed package."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def launch(
    task: Task,
    argv: Sequence[str] | None = None,
    *,
    memory: Callable[[DictConfig], str] | None = None,
) -> None:
    """Run ``task`` with the settings of a command line, as Hydra does; its flags (--help, --cfg,
    -m) all work. ``memory`` says what to do where it ran out.

    Exits with status 1 and one sentence where the user is mistaken.
    """
    argv = list(sys.argv[1:] if argv is None else argv)

    @functools.wraps(task)
    def job(cfg: DictConfig) -> None:
        with explained(partial(memory, cfg) if memory else None):
            check_values(cfg)
            task(cfg)

    with explained():
        sys.argv = [sys.argv[0], *_checked(argv), *_of_process(argv)]
        hydra.main(version_base=VERSION, config_path=str(conf_folder()), config_name="config")(
            job
        )()


def _of_process(argv: list[str]) -> list[str]:
    """What keeps the files of the processes apart that torchrun or srun has started: the first one
    writes down the settings, and the others have logs of their own.
    """
    launch = current()
    if launch.rank == 0 or any(word.startswith("-") for word in argv):
        return []
    name = Path(sys.argv[0]).stem
    return ["hydra.output_subdir=null", f"hydra.job.name={name}_process_{launch.rank}"]


def compose(overrides: Sequence[str], *, config_dir: str | None = None) -> DictConfig:
    """The checked settings. Raises ValueError for a key, choice or value that is not allowed."""
    parsed = _parsed(overrides)
    groups = [_text(each) for each in parsed if each.key_or_group in GROUPS]
    values = [_forced(each) for each in parsed if each.key_or_group not in GROUPS]
    search = [f"hydra.searchpath=[file://{Path(config_dir).absolute()}]"] if config_dir else []
    with hydra.initialize_config_dir(str(conf_folder()), version_base=VERSION):
        base = _composed([*search, *groups])
        cfg = _composed([*search, *groups, *values])
    _check_keys(base, cfg)
    default = _leaves(base, resolve=True)
    for key, value in _leaves(cfg, resolve=True).items():
        check_type(key, value, default.get(key))
    check_values(cfg)
    return cfg


def _checked(argv: list[str]) -> list[str]:
    """The command line for Hydra, where the settings on it are right."""
    parser = get_args_parser()
    parser.error = partial(refuse, parser)  # in place of a page of usage
    flags = parser.parse_args(argv)
    if (
        flags.help
        or flags.hydra_help
        or flags.shell_completion
        or flags.config_path
        or flags.config_name
    ):
        return argv
    parsed = _parsed(flags.overrides)
    if not flags.multirun:
        _check_single(parsed)
    compose([_first(each) for each in parsed], config_dir=flags.config_dir)
    if not flags.cfg and not flags.info:
        _check_folder(parsed, "hydra.sweep.dir" if flags.multirun else "hydra.run.dir")
    # A valid argument that conf/ does not name must be added: Hydra would refuse it otherwise.
    changed = {
        each.input_line: _forced(each) if each.key_or_group not in GROUPS else _text(each)
        for each in parsed
    }
    return [changed.get(word, word) for word in argv]


def _check_single(parsed: list[Override]) -> None:
    """Raise ValueError where a setting has several values and one run is wanted."""
    for each in parsed:
        if each.is_sweep_override():
            key, _, value = str(each.input_line).partition("=")
            raise ValueError(
                f"{each.input_line} is several values: {key}=[{value}] is a list, "
                f"\"{key}='{value}'\" a text, and -m starts a run with each."
            )


def _check_folder(parsed: list[Override], key: str) -> None:
    """Raise ValueError unless Hydra will be able to make the folder of ``key``, as far as its name
    is known here.
    """
    raw = OmegaConf.load(conf_folder() / "config.yaml")
    default: Any = OmegaConf.to_container(raw, resolve=False)
    for part in key.split("."):
        default = default[part]
    given = [each.value() for each in parsed if each.key_or_group == key]
    name, unknown, _ = str(given[-1] if given else default).partition("${")
    folder = Path(name.rpartition("/")[0] if unknown else name)
    here = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        tempfile.TemporaryDirectory(dir=here).cleanup()
    except OSError as error:
        raise ValueError(
            f"The folder {folder} can't be written ({error.strerror}): set {key} to one that can."
        ) from error


def _parsed(overrides: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        hint = " Write out the path instead of ~." if "=~" in str(error.override) else ""
        raise ValueError(
            f"{error.override!r} can't be read: a setting is written key=value.{hint}"
        ) from error


def given(overrides: Sequence[str]) -> set[str]:
    """The keys and groups that a command line sets, such as ``model`` and ``optim.lr``."""
    return {each.key_or_group for each in _parsed(overrides)}


def _text(override: Override) -> str:
    assert override.input_line is not None
    value = override.value()
    if override.key_or_group in TEXT and isinstance(value, int | float):
        return f"{override.get_key_element()}='{override.get_value_string()}'"
    return override.input_line


def _forced(override: Override) -> str:
    """The override as one that also adds keys, so that no other can fail here."""
    text = _text(override)
    plain = not text.startswith(("+", "~")) and not override.is_hydra_override()
    return f"++{text}" if plain else text


def _first(override: Override) -> str:
    """Of a sweep, its first value."""
    if not override.is_sweep_override():
        return _text(override)
    return f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"


def _composed(overrides: list[str]) -> DictConfig:
    try:
        return hydra.compose("config", overrides=overrides)
    except MissingConfigException as error:
        group, _, choice = (error.missing_cfg_file or "").partition("/")
        names = sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))
        raise ValueError(
            f"{group}={choice}: there is no such {group}; choose from {', '.join(names)}."
        ) from error


def _leaves(cfg: DictConfig, *, resolve: bool) -> dict[str, Any]:
    """Values by dotted keys; lists and empty mappings are values."""

    def walk(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in node.items():
            if isinstance(value, dict) and value:
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value

    return dict(walk(OmegaConf.to_container(cfg, resolve=resolve), ""))


def _check_keys(base: DictConfig, cfg: DictConfig) -> None:
    """Raise ValueError for a key that is not in ``base`` and that nobody takes, or is missing."""
    known, given = (list(_leaves(each, resolve=False)) for each in (base, cfg))
    for key in given:
        if key not in known:
            _check_addition(key, cfg, known)
    for key in known:
        if key not in given:
            raise ValueError(f"{key} can't be left out.")


def _check_addition(key: str, cfg: DictConfig, known: list[str]) -> None:
    """Raise ValueError unless ``key``, which conf/ does not name, is an argument of what its node
    builds.
    """
    parent, _, name = key.rpartition(".")
    if parent == "trainer" and name in RESERVED:
        raise ValueError(f"{key} can't be set: the run itself takes care of it.")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    arguments = dict(inspect.signature(get_object(target)).parameters) if target else {}
    if parent == "model" and cfg.init_from is not None:  # of which class, only the file knows
        for klass in CLASSES.values():
            arguments |= inspect.signature(klass).parameters
    if name in arguments or any(
        argument.kind is argument.VAR_KEYWORD for argument in arguments.values()
    ):
        return
    allowed = known + [f"{parent}.{argument}" for argument in arguments]
    raise ValueError(f"{key} is no setting{_nearest(key, allowed)}")


def _nearest(key: str, known: list[str]) -> str:
    last = key.rpartition(".")[2]
    same = [each for each in known if each.rpartition(".")[2] == last]
    ends = {each.rpartition(".")[2]: each for each in reversed(known)}
    close = difflib.get_close_matches(key, known, n=1) or [
        ends[end] for end in difflib.get_close_matches(last, ends, n=1)
    ]
    found = same or close
    return (
        f": did you mean {found[0]}?" if found else ": python train.py --help lists all settings."
    )


def clear() -> None:
    """Forget a composition that was broken off."""
    GlobalHydra.instance().clear()
