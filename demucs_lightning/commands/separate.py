"""``demucs-lightning separate TRACKS...``: files and folders of songs into files of their stems.

The options of the `demucs` command mean what they mean there, but for the defaults of what is
written: the rate, depth and channels of the input, and nothing is overwritten unasked.
"""

import argparse
import io
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from demucs_lightning import audio, pretrained
from demucs_lightning.allocator import own_process
from demucs_lightning.commands.explain import explained, mistakes, sentence
from demucs_lightning.commands.finding import SUFFIXES as SOUNDS
from demucs_lightning.commands.finding import Track, found, named
from demucs_lightning.commands.flags import DEPTHS, parsed
from demucs_lightning.commands.outcomes import Outcome, as_json, in_options
from demucs_lightning.commands.signals import terminable
from demucs_lightning.commands.tracks import Run
from demucs_lightning.pretrained import folder, released
from demucs_lightning.pretrained.loading import SUFFIXES
from demucs_lightning.separator import Choice, Separator, Target, described
from demucs_lightning.separator.choice import METHODS

INTERRUPTED = 130
THREADS = 4  # for each core, at most


class Console(logging.Handler):
    """Prints warnings above a bar, and each once: a track is read more than once."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if text not in self._told:
            self._told.add(text)
            tqdm.write(text, file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> None:
    options = parsed(list(sys.argv[1:] if argv is None else argv))
    for stream in (sys.stdout, sys.stderr):  # a name may be bytes that are no text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    level = logging.INFO if options.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", handlers=[Console()])
    with terminable(), explained(), reported(options.json):
        if options.list_models:
            print(listed(options.repo))
            return
        try:
            run = separate(options)
        except KeyboardInterrupt:  # before the first track
            text = "Interrupted: nothing was written."
            print(text, file=sys.stderr)
            if options.json:
                left = [
                    as_json(Outcome(Track(Path(each)), "not reached")) for each in options.tracks
                ]
                report = {"error": text, "complete": False, "interrupted": True, "tracks": left}
                print(json.dumps(report, indent=2))
            sys.exit(INTERRUPTED)
    if options.json:
        print(json.dumps(run.as_json(), indent=2))
    if run.interrupted:
        sys.exit(INTERRUPTED)
    sys.exit(0 if run.complete else 1)


@contextmanager
def reported(as_json: bool) -> Iterator[None]:
    """A mistake that ends the run is told in terms of options, and ``as_json`` is a report too."""
    try:
        yield
    except mistakes() as error:
        text = in_options(sentence(error))
        if as_json:
            print(json.dumps({"error": text, "complete": False, "tracks": []}, indent=2))
        if type(error) is ValueError:
            raise ValueError(text) from error
        raise


def separate(options: argparse.Namespace) -> Run:
    """Separate all tracks, going on where one fails."""
    paths = checked(options)
    if options.jobs:
        torch.set_num_threads(options.jobs)
    target = target_of(options)
    stems = options.stems and [name.strip() for name in options.stems.split(",") if name.strip()]
    if stems == []:
        raise ValueError(f"--stems is {options.stems!r}: name stems, such as bass,vocals.")
    choice = Choice(stems, options.two_stems, options.other_method, options.exact_sum)
    if options.other_method != METHODS[0] and not options.two_stems:
        logging.warning("--other-method has no effect without --two-stems.")
    if options.exact_sum and not audio.FORMATS[f".{target.format}"].subtypes:
        logging.warning("%s is lossy: with it stems sum up only roughly.", target.format)
    name = name_of(options)
    separator = separator_of(name, options)
    out = Path(options.out)
    folder = out / folder_of(name)
    run = Run(separator, folder, choice, target, dry=options.dry_run, json=options.json)
    run.check()
    run.say(
        f"{name} on {described(separator.devices)} in {separator.precision}; stems go to {folder}"
    )
    run.tracks(found(paths, leaving_out=(out, folder)))
    run.summarise()
    return run


def checked(options: argparse.Namespace) -> list[Path]:
    """The tracks that are named; ValueError for options that can't be, before a model is loaded."""
    if Path(options.name).suffix.lower() in SOUNDS:
        raise ValueError(f"--name is {options.name}: it takes a model; tracks stand by themselves.")
    if not options.tracks:
        raise ValueError("No tracks are given: name audio files, or folders of them.")
    if not options.out:
        raise ValueError("--out is empty: name a folder for the stems.")
    most = THREADS * (os.cpu_count() or 1)
    if not 0 <= options.jobs <= most:
        raise ValueError(
            f"--jobs is {options.jobs}: it must be 0, one for each core, or up to {most}."
        )
    return named(options.tracks)


def name_of(options: argparse.Namespace) -> str:
    """The model that is asked for; a signature must be that of a single one."""
    signature, repo = options.sig, options.repo
    if signature is None:
        return options.name
    if signature not in (released.OFFICIAL if repo is None else folder.scan(repo).models):
        place = f" in {repo}" if repo else ""
        raise ValueError(
            f"-s is {signature}: no single model{place} has this signature; --list-models tells "
            "those that there are."
        )
    return signature


def separator_of(name: str, options: argparse.Namespace) -> Separator:
    model = pretrained.load_model(name, repo=options.repo, offline=options.offline or None)
    try:
        return Separator(
            model,
            device=options.device,
            shifts=options.shifts,
            overlap=options.overlap,
            segment=options.segment,
            batch_size=options.batch_size,
            precision=options.precision,
            seed=options.seed,
        )
    except torch.OutOfMemoryError as error:
        raise OSError(
            f"{name} does not fit into the memory that {options.device} has left: free it, "
            "or take --device cpu."
        ) from error


def target_of(options: argparse.Namespace) -> Target:
    """How files are written. Settings that the format has not are left out, and that is said."""
    form = audio.FORMATS[f".{options.format or 'wav'}"]
    depth = DEPTHS.get(options.depth)
    deeper = bool(form.subtypes) and depth is not None and depth not in form.subtypes
    settings: dict[str, Any] = {
        "subtype": depth if depth in form.subtypes else form.subtypes[-1] if deeper else None,
        "bitrate": options.bitrate if form.bitrates else None,
        "preset": options.mp3_preset if form.presets else None,
    }
    what = f"{depth} samples" if form.subtypes else "a depth"
    asked = {what: depth, "a bit rate": options.bitrate}
    asked["a preset"] = options.mp3_preset
    if deeper:
        logging.warning(
            "%s can't hold %s samples: stems have %s bits.",
            options.format,
            depth,
            form.subtypes[-1].removeprefix("PCM_"),
        )
    for (what, value), used in zip(asked.items(), settings.values(), strict=True):
        if value is not None and used is None:
            form_name = options.format or "wav"
            logging.warning("%s has no such thing as %s: that is left out.", form_name, what)
    return Target(
        format=options.format or "wav",
        filename=options.filename,
        rate=rate_of(options.rate),
        clip_mode=options.clip_mode,
        existing=options.existing,
        **settings,
    )


def rate_of(text: str) -> int | None:
    if text == "keep":
        return None
    if not text.isdecimal() or not 1000 <= int(text) <= 768_000:
        raise ValueError(f"--rate is {text}: it must be keep, or 1000 to 768000 (Hz).")
    return int(text)


def folder_of(name: str) -> str:
    """What the folder of a model is called."""
    if name.endswith((*SUFFIXES, ".yaml")):
        return Path(name).stem
    return name.removeprefix("hf://").replace("/", "_").replace("\\", "_").strip(".") or "model"


def listed(repo: Path | None) -> str:
    """The names of all models."""
    if repo is None:
        bags, single = list(released.RELEASED), list(released.OFFICIAL)
    else:
        local = folder.scan(repo)
        single = sorted(local.models)
        bags = [name for name in local.names if name not in local.models]
    lines = ["Bag of models:", *(f"    {name}" for name in bags)]
    return "\n".join([*lines, "Single models:", *(f"    {name}" for name in single)])


if __name__ == "__main__":
    own_process()
    main()
