"""``demucs-lightning evaluate MODEL``: a model, or a folder of stems, scored on a test set.

Several of these may fill one folder at once, on one machine or many: each takes the tracks that
nobody works on, and the one that ends last prints the table; so does the same command again.
"""

import argparse
import io
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from demucs_lightning import pretrained
from demucs_lightning.allocator import own_process
from demucs_lightning.commands.explain import explained
from demucs_lightning.commands.options import Parser
from demucs_lightning.commands.scoreboard import Scoreboard, conclude
from demucs_lightning.commands.separate import INTERRUPTED, Console, folder_of
from demucs_lightning.commands.signals import terminable
from demucs_lightning.evaluation.estimates import (
    Judged,
    Separated,
    Settings,
    Stems,
    model_hash,
)
from demucs_lightning.evaluation.run import Evaluation, Outcome
from demucs_lightning.evaluation.settled import usual_folder
from demucs_lightning.evaluation.tracks import (
    KINDS,
    SUBSETS,
    TrackSet,
    guessed,
    of_settings,
    open_set,
)
from demucs_lightning.pretrained import released
from demucs_lightning.pretrained.loading import SUFFIXES
from demucs_lightning.separator import described
from demucs_lightning.separator.hardware import PRECISIONS, devices_of

log = logging.getLogger(__name__)

CHOICES = ("shifts", "overlap", "segment", "batch_size", "precision", "seed")
NICE = 10
RESULTS = Path("results")


def main(argv: Sequence[str] | None = None) -> None:
    line = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(line)
    for stream in (sys.stdout, sys.stderr):  # a name may be bytes that are no text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[Console()])
    with explained():
        try:
            with terminable():
                outcome = evaluate(options, command=whole(line))
        except KeyboardInterrupt:
            print("Interrupted: the same command goes on with the tracks that are left.")
            sys.exit(INTERRUPTED)
        if options.delete_model:
            Path(options.model).unlink(missing_ok=True)
    sys.exit(1 if outcome.faults else 0)


def parser() -> argparse.ArgumentParser:
    top = Parser(
        "demucs-lightning evaluate",
        description="Score a model on a test set. What is scored already is not computed again.",
    )
    top.add_argument(
        "model",
        help="a released model, a file or hf://USER/NAME; or a folder of separated stems, "
        "TRACK/SOURCE.wav (.flac .mp3 .m4a .ogg) or TRACK.stem.mp4",
    )
    _model_options(top)
    _data_options(top)
    top.add_argument(
        "-o", "--out", type=Path, help="folder of the results; default: results/DATA/MODEL"
    )
    top.add_argument("--json", metavar="FILE", help="the table as JSON; - for stdout")
    top.add_argument("--no-report", action="store_true", help="no report.html, and no excerpts")
    top.add_argument("--nice", action="store_true", help="at low priority")
    top.add_argument(  # of a copy that was made for this, by a run that may be over by then
        "--delete-model", action="store_true", help=argparse.SUPPRESS
    )
    return top


def _model_options(top: argparse.ArgumentParser) -> None:
    group = top.add_argument_group("model")
    usual = Settings()
    group.add_argument("--repo", type=Path, help="a folder of models, for the name in it")
    group.add_argument("--offline", action="store_true", help="no network: only what is cached")
    group.add_argument(
        "-d", "--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, or cuda:0,cuda:1"
    )
    group.add_argument("--precision", choices=PRECISIONS, help=f"default: {usual.precision}")
    group.add_argument("--shifts", type=int, help=f"random delays to average ({usual.shifts})")
    group.add_argument("--overlap", type=float, help=f"of the chunks ({usual.overlap})")
    group.add_argument("--segment", type=float, help="seconds of a chunk; default: the model's")
    group.add_argument("--batch-size", type=int, help="chunks at once; default: what fits")
    group.add_argument("--seed", type=int, help=f"of the delays ({usual.seed})")
    group.add_argument(
        "-j", "--jobs", type=int, default=0, help="threads of the CPU; default: one for each core"
    )


def _data_options(top: argparse.ArgumentParser) -> None:
    group = top.add_argument_group("data")
    group.add_argument("--data", type=Path, metavar="ROOT", help="folder of the data set")
    group.add_argument("--dset", choices=KINDS, help="default: what ROOT looks like, or musdb18hq")
    group.add_argument(
        "--subset", choices=SUBSETS, help="default: test; of a folder without test/, all"
    )
    group.add_argument("--download", action="store_true", help="fetch the data set if it lacks")
    group.add_argument(
        "--settings",
        type=Path,
        metavar="FILE",
        help="settings.yaml of a training run: its test set, and how it separates it",
    )
    group.add_argument(
        "--tracks",
        action="append",
        default=[],
        metavar="NAME",
        help="only this track; may have * and ?, and be given several times",
    )
    group.add_argument(
        "--shard", metavar="I/N", help="only the I-th of N parts, for machines that share no folder"
    )


def whole(line: Sequence[str]) -> str:
    """The command that scores what all parts of this one do together."""
    kept = [each for each in line if not each.startswith("--shard=")]
    if "--shard" in kept:
        del kept[kept.index("--shard") : kept.index("--shard") + 2]
    if len(kept) == len(line):
        return "the same command"
    return f"`{shlex.join(['demucs-lightning', 'evaluate', *kept])}`"


def evaluate(options: argparse.Namespace, *, command: str) -> Outcome:
    """Score all tracks, going on where one fails, and print the table, as ``command`` would do
    once more."""
    if options.nice and hasattr(os, "nice"):
        os.nice(NICE)
    if options.jobs < 0:
        raise ValueError(f"--jobs is {options.jobs}: it must be 0, one for each core, or more.")
    if options.jobs:
        torch.set_num_threads(options.jobs)
    number, parts = shard_of(options.shard)
    run: Any = OmegaConf.load(_existing(options.settings)) if options.settings else None
    data = data_of(options, run)
    workers = judges(options, run)
    chosen = data.chosen(options.tracks) if options.tracks else data
    folder = options.out or usual_folder(RESULTS, data, name_of(options, workers[0]))
    evaluation = Evaluation(folder, workers, data, excerpts=not options.no_report)
    own = chosen.only(chosen.names[number::parts])
    quiet = options.json == "-"
    with Scoreboard(evaluation, own, place=place_of(workers), quiet=quiet) as board:
        outcome = evaluation.run(own, board)
    conclude(
        outcome,
        chosen.names,
        command=command,
        report=not options.no_report,
        json_file=options.json,
    )
    return outcome


def shard_of(text: str | None) -> tuple[int, int]:
    """Which of how many parts, counted from 0."""
    first, _, second = (text or "1/1").partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise ValueError(f"--shard is {text}: it must be I/N, such as 1/4, the first of four.")
    return int(first) - 1, int(second)


def data_of(options: argparse.Namespace, run: Any) -> TrackSet:
    """The tracks to score."""
    if run is not None:
        if options.data or options.dset:
            raise ValueError("--settings names the data set itself: leave --data and --dset out.")
        from hydra.utils import instantiate  # seconds, which few calls need

        subset = options.subset or "test"
        return of_settings(instantiate(run.dset), subset)
    root = options.data
    kind = options.dset or (guessed(root) if root and root.is_dir() else KINDS[0])
    if options.download and not kind.startswith("musdb"):
        log.warning("--download has no effect: %s is not downloaded.", kind)
    return open_set(
        kind, root or default_root(kind), subset=options.subset, download=options.download
    )


def default_root(kind: str) -> Path:
    """Where conf/ has a data set."""
    return Path(_conf(f"dset/{kind}").get("data_root") or _conf("config").data_root)


def _conf(name: str) -> Any:
    from demucs_lightning.commands.settings import conf_folder  # seconds, too

    return OmegaConf.load(conf_folder() / f"{name}.yaml")


def judges(options: argparse.Namespace, run: Any) -> list[Judged]:
    """The model once for each device, or the folder of stems."""
    given = {name: getattr(options, name) for name in CHOICES if getattr(options, name) is not None}
    path = Path(options.model)
    known = options.model in released.RELEASED or options.model in released.OFFICIAL
    if path.is_dir() and options.repo is None and not known:
        if given:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            log.warning("%s is a folder of stems: %s has no effect.", path, names)
        return [Stems(path)]
    settings = Settings(**{**planned(run), **given})
    model = pretrained.load_model(options.model, repo=options.repo, offline=options.offline or None)
    digest, name = model_hash(model), title_of(options.model)
    return [
        Separated(model, name=name, digest=digest, device=device, settings=settings)
        for device in devices_of(device_of(options.device))
    ]


def planned(run: Any) -> dict[str, Any]:
    """How a run tests its model; without one, as conf/ has it, but as many chunks as fit."""
    test = (run or _conf("config")).test
    names = [name for name in CHOICES if name in test and (run or name != "batch_size")]
    return {name: test[name] for name in names}


def device_of(wanted: str) -> str:
    """``auto`` is the GPU of this process, where torchrun or Slurm started several."""
    if wanted != "auto" or not torch.cuda.is_available():
        return wanted
    local = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    return f"cuda:{int(local) % torch.cuda.device_count()}"


def title_of(model: str) -> str:
    """What a model is called in results; of checkpoints, many are called best."""
    path = Path(model)
    if path.suffix not in SUFFIXES:
        return model
    return f"{path.absolute().parent.name}/{path.stem}" if path.suffix == ".ckpt" else path.stem


def name_of(options: argparse.Namespace, judged: Judged) -> str:
    """The folder of the results: that of a file's weights is another one once they change."""
    if isinstance(judged, Stems):
        return judged.name
    mark = f"-{judged.model['hash'][:8]}" if options.model.endswith(SUFFIXES) else ""
    return f"{folder_of(options.model)}{mark}"


def place_of(workers: Sequence[Judged]) -> str:
    """What computes."""
    found = [each.separator for each in workers if isinstance(each, Separated)]
    if not found:
        return described([torch.device("cpu")])
    devices = [device for separator in found for device in separator.devices]
    return f"{described(devices)} in {found[0].precision}"


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: settings.yaml of a run was expected.")
    return path


if __name__ == "__main__":
    own_process()
    main()
