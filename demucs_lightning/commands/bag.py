"""``demucs-lightning bag NAME --repo FOLDER ...``: a bag of models for one folder.

    demucs-lightning bag NAME --repo FOLDER drums=a.ckpt bass=b.ckpt other=c.ckpt vocals=htdemucs
    demucs-lightning bag NAME --repo FOLDER a.ckpt b.ckpt

The first form is a bag of specialists: each source comes from its own model, or from the mean of
several if it is named again; of a bag, from the member that serves it. The second is the mean of
all models. Written are one `.th` a model
and `NAME.yaml`, which demucs 4.1 and this package read; the yaml comes last, so that a bag that is
there is whole.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from demucs_lightning import pretrained
from demucs_lightning.commands.explain import explained
from demucs_lightning.commands.options import Parser
from demucs_lightning.commands.repository import check_target, same_model, size_of, write_signed
from demucs_lightning.data.disk import amount, check_space
from demucs_lightning.pretrained.files import signed, write_whole
from demucs_lightning.pretrained.package import Package

NAME = re.compile(r"\w[\w.-]*")
ALIKE = ("sources", "samplerate", "audio_channels")


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    with explained():
        print(assemble(arguments))


def parser() -> argparse.ArgumentParser:
    top = Parser("demucs-lightning bag", description="Put models together that separate as one.")
    top.add_argument("name", metavar="NAME", help="of the bag")
    top.add_argument(
        "members",
        metavar="[SOURCE=]MODEL",
        nargs="+",
        help="the model for a source, or without sources: models whose mean is taken",
    )
    top.add_argument(
        "--repo", type=Path, required=True, metavar="FOLDER", help="where the bag is written"
    )
    top.add_argument("--segment", type=float, help="seconds of the chunks; default: the models'")
    top.add_argument("--float32", action="store_true", help="weights in fp32, not fp16")
    top.add_argument("--overwrite", action="store_true", help="replace NAME.yaml if it exists")
    top.add_argument("--offline", action="store_true", help="no network: only what is cached")
    return top


def assemble(arguments: argparse.Namespace) -> str:
    """Write the bag; returns what to tell the user."""
    folder: Path = arguments.repo
    target = folder / f"{arguments.name}.yaml"
    check_name(arguments.name, folder)
    segment = arguments.segment
    if segment is not None and not (math.isfinite(segment) and segment > 0):
        raise ValueError(f"--segment is {segment}: it must be a number of seconds above 0.")
    asked = [parsed(member) for member in arguments.members]
    check_asked(asked)
    check_target(target, [target], overwrite=arguments.overwrite)

    names = dict.fromkeys(name for _, name in asked)
    releases = {name: pretrained.find(name, offline=arguments.offline or None) for name in names}
    served = [(source, pretrained.member(releases[name], source)) for source, name in asked]
    given = {id(package): name for (_, name), (_, package) in zip(asked, served, strict=True)}
    packages = list({id(package): package for _, package in served}.values())
    sources = agreed_sources(packages, [given[id(package)] for package in packages])
    weights = weights_of(served, packages, sources)
    if segment is None:  # of the releases, where all have one
        own = {release.segment for release in releases.values()}
        segment = own.pop() if len(own) == 1 else None
    half = not arguments.float32
    needed = sum(size_of(package, half=half) for package in packages)
    check_space(folder, needed, purpose=f"write the models of {arguments.name}")

    files = [write_signed(package, folder, half=half) for package in packages]
    signatures = [signed(file)[0] for file in files]
    write_whole(target, bag_yaml(signatures, weights, segment).encode())
    total = amount(sum(file.stat().st_size for file in set(files)))
    models = "1 model" if len(set(files)) == 1 else f"{len(set(files))} models"
    return (
        f"{target} and {models} ({total}): "
        f"demucs --repo {folder} -n {arguments.name} SONG separates with it."
    )


def check_name(name: str, folder: Path) -> None:
    """Raise ValueError for a name that no bag can have, or that a model in the folder has."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} can't name a bag: use letters, digits, '_', '-' and '.', without a folder."
        )
    if taken := same_model(folder, name):
        raise ValueError(f"{taken[0]} has the name {name!r} already: choose another for the bag.")


def parsed(member: str) -> tuple[str | None, str]:
    """``SOURCE=MODEL`` as a pair, ``MODEL`` with None; a path may have a '=' in it, too."""
    source, equals, model = member.partition("=")
    if not equals or Path(member).exists() or "/" in source or "\\" in source:
        return None, member
    if not source or not model:
        raise ValueError(f"{member!r} is not SOURCE=MODEL, such as vocals=best.ckpt.")
    return source, model


def check_asked(asked: Sequence[tuple[str | None, str]]) -> None:
    """Raise ValueError where only some models have a source, or one without is given twice."""
    if len({source is None for source, _ in asked}) > 1:
        raise ValueError("Some models are given with a source and some without: give all or none.")
    names = [name for source, name in asked if source is None]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]} is given more than once.")


def agreed_sources(packages: Sequence[Package], names: Sequence[str]) -> list[str]:
    """The sources of all models; ValueError, naming two of them as the user did, where models
    disagree, and for one that is damaged."""
    for package in packages:
        pretrained.check_fits(package)
    for package, name in zip(packages, names, strict=True):
        for each in ALIKE:
            ours, theirs = packages[0].argument(each), package.argument(each)
            ours, theirs = (list(v) if each == "sources" else v for v in (ours, theirs))
            if ours != theirs:
                raise ValueError(
                    f"{names[0]} and {name} can't be in one bag: their {each} are {ours} and "
                    f"{theirs}."
                )
    return list(packages[0].argument("sources"))


def weights_of(
    served: Sequence[tuple[str | None, Package]], packages: Sequence[Package], sources: list[str]
) -> list[list[float]] | None:
    """Rows of the models for columns of the sources, 1 where one serves the other; None for all
    alike. Raises ValueError for a source that there is not, or that no model serves."""
    wanted = [source for source, _ in served if source is not None]
    if not wanted:
        return None
    if unknown := [source for source in wanted if source not in sources]:
        raise ValueError(
            f"There is no source {unknown[0]!r}: the models have {', '.join(sources)}."
        )
    if missing := [source for source in sources if source not in wanted]:
        raise ValueError(
            f"No model is given for {', '.join(missing)}: each source needs one, as in "
            f"{missing[0]}=MODEL."
        )
    pairs = {(source, id(package)) for source, package in served}
    return [[float((source, id(package)) in pairs) for source in sources] for package in packages]


def bag_yaml(
    signatures: Sequence[str], weights: list[list[float]] | None, segment: float | None
) -> str:
    """The bag as demucs reads it. Signatures are in quotes: some look like numbers."""
    lines = [f"models: {json.dumps(list(signatures))}"]
    if weights is not None:
        lines += ["weights: [", *(f"  {json.dumps(row)}," for row in weights), "]"]
    if segment is not None:
        lines += [f"segment: {segment!r}"]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
