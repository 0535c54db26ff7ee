"""``demucs-lightning models``: the released models, what this disk has of them, and getting or
removing them.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demucs_lightning import pretrained
from demucs_lightning.commands.explain import explained
from demucs_lightning.commands.options import Parser
from demucs_lightning.data.disk import amount
from demucs_lightning.pretrained import caches, folder, hub, released
from demucs_lightning.pretrained.loading import HUB, unknown

COLUMNS = ("name", "sources", "models", "size", "trained on", "on this disk")


def main(argv: Sequence[str] | None = None) -> None:
    """Run `models`, `models list`, `models download NAME...` or `models remove NAME...`."""
    arguments = parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with explained(), unread():
        arguments.run(arguments)


@contextmanager
def unread() -> Iterator[None]:
    """Ends in silence where who reads the output stops, as `head` does."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        sys.exit(141)  # as of a program that SIGPIPE ends


def parser() -> argparse.ArgumentParser:
    top = Parser("demucs-lightning models", description="The released models.")
    actions = top.add_subparsers(metavar="{list,download,remove}")
    listing = actions.add_parser("list", help="what there is, and what this disk has (default)")
    top.set_defaults(run=show, json=False, repo=None)
    for each in (top, listing):  # `models --json` is `models list --json`
        unset = argparse.SUPPRESS
        each.add_argument("--json", action="store_true", default=unset, help="as JSON")
        each.add_argument("--repo", type=Path, default=unset, help="a local folder of models")
    download = actions.add_parser("download", help="get models into the caches, and check them")
    download.add_argument("names", nargs="+", metavar="NAME", help="a model or a signature")
    download.add_argument(
        "--official", action="store_true", help="the official .th files, not those of the hub"
    )
    download.add_argument(
        "--offline", action="store_true", help="only check what the caches have; no network"
    )
    download.set_defaults(run=get)
    removal = actions.add_parser("remove", help="delete models from the caches")
    removal.add_argument("names", nargs="+", metavar="NAME", help="a model or a signature")
    removal.set_defaults(run=remove)
    return top


def show(arguments: argparse.Namespace) -> None:
    rows = [row(name) for name in released.RELEASED]
    if arguments.repo is not None:
        rows = local_rows(folder.scan(arguments.repo))
    if arguments.json:
        print(json.dumps({"models": rows, "licence": released.LICENCE}, indent=2))
        return
    print(table(rows))
    if arguments.repo is None:
        print(
            "\nSizes with ~ are of the official download. A single model of a bag goes by its "
            f"signature.\n{released.LICENCE}"
        )


def row(name: str) -> dict[str, Any]:
    """What is known of a released bag, and what the caches have of it."""
    model = released.RELEASED[name]
    signatures = list(dict.fromkeys(model.bag.signatures))
    found = {signature: caches.cached(signature, bag=name) for signature in signatures}
    taken = [files[0] for files in found.values() if files]
    whole = len(taken) == len(signatures)
    return {
        "name": name,
        "sources": list(model.sources),
        "models": list(model.bag.signatures),
        "bytes": sum(file.path.stat().st_size for file in taken) if whole else None,
        "download_bytes": released.size_of(name),
        "trained_on": model.training,
        "cached": sorted({file.source for file in taken}) if whole else [],
        "missing": [signature for signature, files in found.items() if not files],
    }


def local_rows(found: folder.Folder) -> list[dict[str, Any]]:
    """The models of a local folder, in the form of `row`; sources are in the files themselves."""
    rows = []
    for name in found.names:
        signatures = list(found.bag(name).signatures)
        files = {signature: found.models.get(signature) for signature in signatures}
        missing = [signature for signature, path in files.items() if path is None]
        rows.append(
            {
                "name": name,
                "sources": None,
                "models": signatures,
                "bytes": sum(path.stat().st_size for path in files.values() if path),
                "download_bytes": None,
                "trained_on": None,
                "cached": [] if missing else [str(found.path)],
                "missing": missing,
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lines of columns; a column that no row fills is left out."""
    lines = [COLUMNS, *(cells(each) for each in rows)]
    filled = [i for i in range(len(COLUMNS)) if any(line[i] for line in lines[1:])]
    widths = {i: max(len(line[i]) for line in lines) for i in filled}
    return "\n".join("  ".join(line[i].ljust(widths[i]) for i in filled).rstrip() for line in lines)


def cells(each: dict[str, Any]) -> tuple[str, ...]:
    size = ""
    if each["bytes"]:
        size = amount(each["bytes"])
    elif each["download_bytes"]:
        size = f"~{amount(each['download_bytes'])}"
    distinct = set(each["models"])
    there = ", ".join(each["cached"])
    if each["missing"]:
        had = len(distinct) - len(each["missing"])
        there = f"{had} of {len(distinct)}" if had else "no"
    return (
        each["name"],
        " ".join(each["sources"] or []),
        str(len(each["models"])),
        size,
        each["trained_on"] or "",
        there,
    )


def get(arguments: argparse.Namespace) -> None:
    access = hub.Access(offline=arguments.offline)
    for name in arguments.names:
        if name.startswith(HUB):
            if arguments.official:
                raise ValueError(f"{name} is on the hub alone: leave --official out.")
            pretrained.find(name, offline=arguments.offline)
            print(f"{name}: complete")
            continue
        for signature in signatures_of(name):
            if arguments.official:
                path = hub.official(signature, access)
            else:
                path = hub.weights(signature, access, bag=name)
            print(f"{name}: {path} ({amount(path.stat().st_size)})")
        if name in released.RELEASED:
            hub.complete_repository(name, access)
    print(released.LICENCE)


def remove(arguments: argparse.Namespace) -> None:
    on_hub = [name for name in arguments.names if name.startswith(HUB)]
    names = [name for name in arguments.names if name not in on_hub]
    chosen = {signature for name in names for signature in signatures_of(name)}
    for name in on_hub:
        freed = caches.remove_repository(released.repository(name.removeprefix(HUB)))
        print(f"{name}: {amount(freed)} freed." if freed else f"{name}: nothing to remove.")
    if not names:
        return
    kept = {name: shared for name in released.RELEASED if (shared := needed_by(name, chosen))}
    for name, shared in kept.items():
        print(
            f"{', '.join(sorted(shared))}: kept for {name}, which needs more than these and is on "
            f"this disk too; `demucs-lightning models remove {name}` deletes it."
        )
    going = chosen - set().union(*kept.values())
    if not any(map(caches.cached, going)):
        print(f"{', '.join(names)}: nothing to remove.")
        return
    print(f"{', '.join(names)}: {amount(caches.remove(sorted(going)))} freed.")


def needed_by(name: str, chosen: set[str]) -> set[str]:
    """Which of the signatures a cached bag shares that is not all among them."""
    signatures = set(released.RELEASED[name].bag.signatures)
    needs = not signatures <= chosen and all(map(caches.cached, signatures))
    return signatures & chosen if needs else set()


def signatures_of(name: str) -> list[str]:
    """The models of a released name or signature, each once; ValueError for another name."""
    if name in released.RELEASED:
        return list(dict.fromkeys(released.RELEASED[name].bag.signatures))
    if name in released.OFFICIAL:
        return [name]
    raise ValueError(unknown(name, or_path=False))


if __name__ == "__main__":
    main()
