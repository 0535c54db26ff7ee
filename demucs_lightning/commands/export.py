"""``demucs-lightning export CHECKPOINT OUT``: a model as a file for other programs.

The suffix of OUT decides: `.th` and `.safetensors` are what demucs 4.1 reads, `.onnx` is the core
network for onnxruntime. What can be known to fail is looked at before anything is loaded.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from demucs_lightning import pretrained
from demucs_lightning.commands.explain import explained
from demucs_lightning.commands.options import Parser
from demucs_lightning.commands.repository import check_target, same_model, size_of, write_signed
from demucs_lightning.data.disk import amount, check_space
from demucs_lightning.pretrained.onnx import check_exportable, write_onnx

USES = {
    ".th": "demucs --repo {folder} -n {signature} SONG separates with it.",
    ".safetensors": "load_model({path!r}) reads it, and on the hub, beside a yaml, demucs does.",
    ".onnx": (
        "chunks of {chunk} samples. A program that runs it is in it: "
        'python -c "import onnx; print(onnx.load({path!r}).doc_string)"'
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    with explained():
        print(export(arguments))


def parser() -> argparse.ArgumentParser:
    top = Parser(
        "demucs-lightning export", description="Write a model as a file for other programs."
    )
    top.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a file of weights, or a model's name"
    )
    top.add_argument("out", metavar="OUT", type=Path, help="NAME.th, NAME.safetensors, NAME.onnx")
    top.add_argument(
        "--float32", action="store_true", help=".th, .safetensors: weights in fp32, not fp16"
    )
    top.add_argument(
        "--checksum", action="store_true", help=".th: NAME-CHECKSUM.th, as in demucs' repositories"
    )
    top.add_argument(
        "--segment", type=float, help=".onnx: seconds of its chunks; default: the model's"
    )
    top.add_argument(
        "--overwrite", action="store_true", help="replace OUT, and for .th others of its name"
    )
    top.add_argument("--repo", type=Path, help="a local folder of models to take CHECKPOINT from")
    top.add_argument("--offline", action="store_true", help="no network: only what is cached")
    return top


def export(arguments: argparse.Namespace) -> str:
    """Write the file; returns what to tell the user."""
    out: Path = arguments.out
    check_flags(arguments)
    replaced = [] if out.suffix != ".th" else same_model(out.parent, out.stem)
    check_target(out, [*replaced, out], overwrite=arguments.overwrite)
    release = pretrained.find(
        arguments.checkpoint, repo=arguments.repo, offline=arguments.offline or None
    )
    package = pretrained.member(release)
    half = out.suffix != ".onnx" and not arguments.float32
    check_space(out.parent, size_of(package, half=half), purpose=f"write {out.name}")

    chunk = None
    if out.suffix == ".onnx":
        chunk = write_onnx(pretrained.build(package), out, segment=arguments.segment)
    elif arguments.checksum:
        out = write_signed(package, out.parent, out.stem, half=half)
    else:
        pretrained.write(package, out, half=half)
    for former in replaced:
        if former != out:
            former.unlink()
    use = USES[out.suffix].format(
        folder=out.parent, signature=arguments.out.stem, path=str(out), chunk=chunk
    )
    precision = "fp16" if half else "fp32"
    return f"{out} ({amount(out.stat().st_size)}, {precision}): {use}"


def check_flags(arguments: argparse.Namespace) -> None:
    """Raise ValueError for a suffix that is not written, and for a flag that it has no use for."""
    out: Path = arguments.out
    if out.suffix not in USES:
        raise ValueError(f"{out} can't be written: its name must end in {', '.join(USES)}.")
    if arguments.segment is not None and out.suffix != ".onnx":
        raise ValueError("--segment is for .onnx: other files hold a model for any length.")
    if arguments.checksum and out.suffix != ".th":
        raise ValueError("--checksum is for .th: demucs looks for it in no other name.")
    if out.suffix == ".th" and "-" in out.stem and not arguments.checksum:
        raise ValueError(
            f"{out.name} has a '-', and demucs takes what follows it for a checksum: "
            "choose another name or add --checksum."
        )
    if out.suffix == ".onnx":
        check_exportable()


if __name__ == "__main__":
    main()
