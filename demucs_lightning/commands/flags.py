"""The options of ``demucs-lightning separate``."""

import argparse
import math
from pathlib import Path

from demucs_lightning import audio
from demucs_lightning.commands.options import Parser
from demucs_lightning.separator.choice import METHODS
from demucs_lightning.separator.files import CLIP_MODES
from demucs_lightning.separator.hardware import PRECISIONS

DEPTHS = {"16": "PCM_16", "24": "PCM_24", "32": "PCM_32", "float": "FLOAT"}


def parsed(argv: list[str]) -> argparse.Namespace:
    """The options, which may stand between tracks; behind ``--`` all are tracks."""
    at = argv.index("--") if "--" in argv else len(argv)
    options = parser().parse_intermixed_args(argv[:at])  # which is at a loss with a --
    options.tracks += argv[at + 1 :]
    return options


def parser() -> argparse.ArgumentParser:
    top = Parser(
        "demucs-lightning separate",
        description="Separate songs into stems. Exits with 0 only if every track was separated.",
    )
    top.add_argument("tracks", nargs="*", help="audio files, or folders of them")
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
    models = group.add_mutually_exclusive_group()
    models.add_argument(
        "-n", "--name", default="htdemucs", help="a released model, a file or hf://USER/NAME"
    )
    models.add_argument("-s", "--sig", help="a single model, by its signature")
    group.add_argument("--repo", type=Path, help="a folder of models, to look in for -n or -s")
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
        default="separated",
        help="stems go to OUT/MODEL (separated)",
    )
    group.add_argument(
        "--filename",
        help='below that; default "{track}/{stem}.{ext}"; there are also {trackext}, {title}, '
        "{artist} and {album}",
    )
    existing = group.add_mutually_exclusive_group()
    for choice, text in (
        ("skip", "write only those stems of a track that are not there"),
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
