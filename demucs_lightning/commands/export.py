"""``demucs-lightning export CHECKPOINT OUT``: a model as a file for other programs.

The suffix of OUT decides: `.th` and `.safetensors` are what demucs 4.1 reads, `.onnx` is the core
network for onnxruntime. What can be known to fail is looked at before anything is loaded.
"""

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demucs_lightning import pretrained
from demucs_lightning.commands.explain import explained
from demucs_lightning.data.disk import amount, check_space
from demucs_lightning.pretrained.onnx import check_exportable, write_onnx

CHECKSUM = 8  # hexadecimal digits of the sha256 that stand in a file's name
USES = {
    ".th": "demucs --repo {folder} -n {signature} SONG separates with it.",
    ".safetensors": "load_model({path!r}) reads it, and on the hub, beside a yaml, demucs does.",
    ".onnx": "chunks of {chunk} samples; the description in it is a program that runs it.",
}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    with explained():
        print(export(arguments))


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
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
    package = single(arguments.checkpoint, release)
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


def same_model(folder: Path, wanted: str) -> list[Path]:
    """The .th files of that signature: demucs refuses a folder that has two."""
    files = sorted(folder.glob("*.th")) if folder.is_dir() else []
    return [file for file in files if wanted in (file.stem, file.stem.rpartition("-")[0])]


def check_target(out: Path, files: Sequence[Path], *, overwrite: bool) -> None:
    """Raise OSError, naming it, for a folder that can't be written to, and unless ``overwrite``
    for the first of ``files`` that exists. The folder is made."""
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder: a file is to be written there.")
    for file in files:
        if file.exists() and not overwrite:
            raise FileExistsError(f"{file} exists: add --overwrite to replace it.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(out.parent)) from error


def single(name: str, release: Any) -> pretrained.Package:
    """The one model of a release; ValueError, with its members, for a bag of several."""
    members = {id(package): package for package in release.packages}.values()
    if len(members) > 1:
        names = ", ".join(Path(package.origin).stem.partition("-")[0] for package in members)
        raise ValueError(
            f"{name} is a bag of {len(members)} models, and a file holds one: name one of its "
            f"members, {names}."
        )
    return next(iter(members))


def size_of(package: pretrained.Package, *, half: bool) -> int:
    """Bytes of the weights, written in half precision or in full."""
    return sum(value.numel() for value in package.state.values()) * (2 if half else 4)


def write_signed(
    package: pretrained.Package, folder: Path, name: str | None = None, *, half: bool
) -> Path:
    """Write ``folder/NAME-CHECKSUM.th``; without a ``name``, it is of the content, too."""
    part = Path(tempfile.mkdtemp(prefix=".export-", dir=folder)) / "model.th"
    try:
        pretrained.write(package, part, half=half)
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        name = digest[CHECKSUM : 2 * CHECKSUM] if name is None else name
        return part.replace(folder / f"{name}-{digest[:CHECKSUM]}.th")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder / f"{name or 'model'}.th")) from error
    finally:
        part.unlink(missing_ok=True)
        part.parent.rmdir()


if __name__ == "__main__":
    main()
