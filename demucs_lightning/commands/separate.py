"""``demucs-lightning separate TRACKS...``: files and folders of songs into files of their stems.

The options of the `demucs` command mean what they mean there, but for the defaults of what is
written: the rate, depth and channels of the input, and nothing is overwritten unasked.
"""

import argparse
import io
import json
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from demucs_lightning import audio, pretrained
from demucs_lightning.commands.explain import MISTAKES, explained, sentence
from demucs_lightning.commands.tracks import Run, found
from demucs_lightning.pretrained import folder, released
from demucs_lightning.pretrained.loading import SUFFIXES
from demucs_lightning.separator import Choice, Separator, Target, described
from demucs_lightning.separator.choice import METHODS
from demucs_lightning.separator.files import CLIP_MODES
from demucs_lightning.separator.hardware import PRECISIONS

DEPTHS = {"16": "PCM_16", "24": "PCM_24", "32": "PCM_32", "float": "FLOAT"}
INTERRUPTED = 130


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
    options = parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    for stream in (sys.stdout, sys.stderr):  # a name may be bytes that are no text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    level = logging.INFO if options.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", handlers=[Console()])
    try:
        with explained(), reported(options.json):
            if options.list_models:
                print(listed(options.repo))
                return
            run = separate(options)
    except KeyboardInterrupt:  # before the first track
        print("Interrupted: nothing was written.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    if options.json:
        print(json.dumps(run.as_json(), indent=2))
    if run.interrupted:
        sys.exit(INTERRUPTED)
    sys.exit(0 if run.complete else 1)


@contextmanager
def reported(as_json: bool) -> Iterator[None]:
    """With ``as_json``, a mistake that ends the run is a report too."""
    try:
        yield
    except (*MISTAKES, torch.OutOfMemoryError) as error:
        if as_json:
            report = {"error": sentence(error), "complete": False, "tracks": []}
            print(json.dumps(report, indent=2))
        raise


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        "demucs-lightning separate",
        description="Separate songs into stems. Exits with 0 only if every track was separated.",
    )
    top.add_argument("tracks", nargs="*", type=Path, help="audio files, or folders of them")
    _model_options(top)
    _output_options(top)
    _format_options(top)
    top.add_argument("--json", action="store_true", help="a report as JSON on stdout")
    top.add_argument("--dry-run", action="store_true", help="check and say all, write nothing")
    top.add_argument("--list-models", action="store_true", help="list the models and exit")
    top.add_argument("-v", "--verbose", action="store_true")
    return top


def _model_options(top: argparse.ArgumentParser) -> None:
    group = top.add_argument_group("model")
    group.add_argument(
        "-n", "--name", default="htdemucs", help="a released model, a file or hf://USER/NAME"
    )
    group.add_argument("--repo", type=Path, help="a folder of models, for the name in it")
    group.add_argument("--offline", action="store_true", help="no network: only what is cached")
    group.add_argument(
        "-d", "--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, or cuda:0,cuda:1"
    )
    group.add_argument("--precision", choices=PRECISIONS, default="auto", help="default: auto")
    group.add_argument("--shifts", type=int, default=1, help="random delays to average (1)")
    group.add_argument("--overlap", type=float, default=0.25, help="of the chunks (0.25)")
    chunks = group.add_mutually_exclusive_group()
    chunks.add_argument(
        "--no-split",
        dest="segment",
        action="store_const",
        const=math.inf,
        help="each track in one piece, whatever memory that takes",
    )
    chunks.add_argument("--segment", type=float, help="seconds of a chunk; default: the model's")
    group.add_argument("--batch-size", type=int, help="chunks at once; default: what fits")
    group.add_argument("--seed", type=int, default=0, help="of the delays (0)")
    group.add_argument(
        "-j", "--jobs", type=int, default=0, help="threads of the CPU; default: one for each core"
    )


def _output_options(top: argparse.ArgumentParser) -> None:
    group = top.add_argument_group("stems and files")
    stems = group.add_mutually_exclusive_group()
    stems.add_argument("--stems", metavar="A,B", help="only these stems; default: all")
    stems.add_argument("--two-stems", metavar="STEM", help="only STEM, and the rest as no_STEM")
    group.add_argument(
        "--other-method",
        choices=METHODS,
        default="add",
        help="the rest is the sum of all others (add), the track minus STEM, called minus_STEM "
        "(minus), or not written (none)",
    )
    group.add_argument(
        "--exact-sum",
        action="store_true",
        help="stems sum up to the track: `other` takes what is lacking, or else all take their "
        "share; to the last bit with 16 and 24 bits where nothing clips",
    )
    group.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("separated"),
        help="stems go to OUT/MODEL (separated)",
    )
    group.add_argument(
        "--filename",
        help='below that; default "{track}/{stem}.{ext}"; there are also {trackext}, {title}, '
        "{artist} and {album}",
    )
    existing = group.add_mutually_exclusive_group()
    for choice, text in (
        ("skip", "leave tracks out whose stems are all there"),
        ("overwrite", "replace stems that are there; default: such a track fails"),
    ):
        name = "--skip-existing" if choice == "skip" else "--overwrite"
        existing.add_argument(
            name, dest="existing", action="store_const", const=choice, default="refuse", help=text
        )


def _format_options(top: argparse.ArgumentParser) -> None:
    group = top.add_argument_group("format")
    forms = group.add_mutually_exclusive_group()
    known = sorted(suffix.removeprefix(".") for suffix in audio.FORMATS)
    forms.add_argument("--format", choices=known, help="default: wav", metavar="|".join(known))
    for name in ("flac", "mp3"):
        forms.add_argument(f"--{name}", dest="format", action="store_const", const=name)
    group.add_argument("--rate", default="keep", metavar="HZ", help="default: keep the track's")
    depths = group.add_mutually_exclusive_group()
    depths.add_argument(
        "--depth",
        choices=["keep", *DEPTHS],
        default="keep",
        help="bits of a sample, for wav, flac and aiff; default: keep the track's",
    )
    depths.add_argument("--int24", dest="depth", action="store_const", const="24")
    depths.add_argument("--float32", dest="depth", action="store_const", const="float")
    group.add_argument(
        "--mp3-bitrate", "--bitrate", dest="bitrate", type=int, help="kbit/s; default: 320 for mp3"
    )
    group.add_argument(
        "--mp3-preset", type=int, choices=range(2, 8), help="2, the best and default, to 7"
    )
    group.add_argument(
        "--clip-mode",
        choices=CLIP_MODES,
        default="rescale",
        help="where a stem passes full scale: all stems of the track are made quieter alike, "
        "unless samples are floats (rescale); it is cut at 0.99 (clamp); or at full scale, "
        "unless samples are floats (none)",
    )


def separate(options: argparse.Namespace) -> Run:
    """Separate all tracks, going on where one fails."""
    if not options.tracks:
        raise ValueError("No tracks are given: name audio files, or folders of them.")
    if options.jobs < 0:
        raise ValueError(f"--jobs is {options.jobs}: it must be 0, one for each core, or more.")
    if options.jobs:
        torch.set_num_threads(options.jobs)
    target = target_of(options)
    stems = options.stems and [name.strip() for name in options.stems.split(",") if name.strip()]
    choice = Choice(stems, options.two_stems, options.other_method, options.exact_sum)
    if options.other_method != METHODS[0] and not options.two_stems:
        logging.warning("--other-method has no effect without --two-stems.")
    if options.exact_sum and not audio.FORMATS[f".{target.format}"].subtypes:
        logging.warning("%s is lossy: with it stems sum up only roughly.", target.format)
    separator = separator_of(options)
    folder = options.out / folder_of(options.name)
    run = Run(separator, folder, choice, target, dry=options.dry_run, json=options.json)
    run.check()
    run.say(
        f"{options.name} on {described(separator.devices)} in {separator.precision}; "
        f"stems go to {folder}"
    )
    run.tracks(found(options.tracks, leaving_out=(options.out, folder)))
    run.summarise()
    return run


def separator_of(options: argparse.Namespace) -> Separator:
    model = pretrained.load_model(options.name, repo=options.repo, offline=options.offline or None)
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
            f"{options.name} does not fit into the memory that {options.device} has left: free it, "
            "or take --device cpu."
        ) from error


def target_of(options: argparse.Namespace) -> Target:
    """How files are written. Settings that the format has not are left out, and that is said."""
    form = audio.FORMATS[f".{options.format or 'wav'}"]
    depth = DEPTHS.get(options.depth)
    settings: dict[str, Any] = {
        "subtype": depth if depth in form.subtypes else None,
        "bitrate": options.bitrate if form.bitrates else None,
        "preset": options.mp3_preset if form.presets else None,
    }
    what = f"{depth} samples" if form.subtypes else "a depth"
    asked = {what: depth, "a bit rate": options.bitrate}
    asked["a preset"] = options.mp3_preset
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
    main()
