"""From a name to a model: released bags and single models, local folders, files, the hub."""

import difflib
import re
from collections.abc import Callable
from pathlib import Path

from torch import nn

from demucs_lightning.data.download import NoAnswer
from demucs_lightning.pretrained import folder, hub, released
from demucs_lightning.pretrained.bags import Bag, read_bag
from demucs_lightning.pretrained.formats import read
from demucs_lightning.pretrained.hub import Access
from demucs_lightning.pretrained.package import build
from demucs_lightning.pretrained.release import Release
from demucs_lightning.separation.bags import BagOfModels, at_segment

HUB = "hf://"
SUFFIXES = (".ckpt", ".th", ".safetensors")
HUB_NAME = re.compile(r"([\w-][\w.-]*/)?[\w-][\w.-]*", re.ASCII)


def load_model(
    name_or_path: str | Path, *, repo: str | Path | None = None, offline: bool | None = None
) -> nn.Module:
    """The model that `find` finds, in fp32 and eval mode on the CPU; a BagOfModels for several.

    Raises what `find` raises, and ValueError for a file that does not fit its class.
    """
    return model_of_release(find(name_or_path, repo=repo, offline=offline))


def model_of_release(release: Release) -> nn.Module:
    """The model, or bag of models, of a release. A package that is in it twice is built once."""
    built = {id(package): package for package in release.packages}
    models = {key: build(package) for key, package in built.items()}
    members = [models[id(package)] for package in release.packages]
    if len(members) > 1:
        return BagOfModels(members, release.weights, segment=release.segment).eval()
    (model,) = members
    return model if release.segment is None else at_segment(model, release.segment)


def find(
    name_or_path: str | Path,
    *,
    repo: str | Path | None = None,
    offline: bool | None = None,
    progress: bool | None = None,
) -> Release:
    """What a name stands for, fetched if it is not on this disk.

    ``name_or_path`` is a released name or signature, ``hf://user/name``, a `.ckpt`, `.th` or
    `.safetensors` file, the `.yaml` of a bag beside its files, or a name in the folder ``repo``.
    ``offline`` looks at this disk alone; ``progress`` False hides the bar that a terminal is shown.

    Raises FileNotFoundError or ValueError for a name that is not known and for files that can't be
    read, and OSError where something can't be fetched.
    """
    name, access = str(name_or_path), Access(offline, progress)
    if repo is not None:
        return _in_folder(folder.scan(repo), name)
    if name.startswith(HUB):
        return _on_hub(name, access)
    if isinstance(name_or_path, Path) or _is_path(name):
        return _file(Path(name).expanduser())
    if name in released.RELEASED:
        bag = released.RELEASED[name].bag
        return _release(name, bag, lambda signature: hub.weights(signature, access, bag=name))
    if name in released.OFFICIAL:
        return _release(name, Bag((name,)), lambda signature: hub.weights(signature, access))
    raise ValueError(unknown(name))


def _is_path(name: str) -> bool:
    known = name in released.RELEASED or name in released.OFFICIAL
    looks = name.endswith((*SUFFIXES, ".yaml")) or "/" in name or "\\" in name
    return not known and (looks or Path(name).exists())


def unknown(name: str, *, or_path: bool = True) -> str:
    """The sentence for a name that is not released, with the nearest that are; ``or_path``: the
    path of a file would have done, too."""
    names = [*released.RELEASED, *released.OFFICIAL]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), names)
    choice = " or ".join(near) if near else f"one of {', '.join(released.RELEASED)}"
    others = f", {HUB}USER/NAME or a path" if or_path else f" or {HUB}USER/NAME"
    meant = f"did you mean {choice}?" if near else f"it must be {choice}{others}."
    return f"There is no model {name!r}: {meant}"


def _in_folder(found: folder.Folder, name: str) -> Release:
    return _release(name, found.bag(name), found.file)


def _on_hub(address: str, access: Access) -> Release:
    name = address.removeprefix(HUB)
    if not HUB_NAME.fullmatch(name):
        raise ValueError(f"{address} is no model of the hub: it must be {HUB}USER/NAME.")
    repository = released.repository(name)
    try:
        path = hub.from_hub(repository, f"{name.rpartition('/')[2]}.yaml", access)
        return _release(
            address,
            read_bag(path),
            lambda signature: hub.from_hub(repository, f"{signature}.safetensors", access),
        )
    except NoAnswer as reason:
        raise OSError(f"{address} can't be had: {str(reason).rstrip('.')}.") from reason


def _file(path: Path) -> Release:
    if path.is_dir():
        names = ", ".join(folder.scan(path).names) or "none"
        raise ValueError(
            f"{path} is a folder: give the name of a model in it ({names}), and the folder as repo."
        )
    if not path.exists():
        on_hub = HUB_NAME.fullmatch(str(path)) and not path.suffix
        hint = f", and a model of the hub is written {HUB}{path}" if on_hub else ""
        raise FileNotFoundError(f"{path} does not exist: a file of weights is expected{hint}.")
    if path.suffix == ".yaml":
        return _release(path.stem, read_bag(path), folder.scan(path.parent).file)
    return Release(path.stem, [read(path)])


def _release(name: str, bag: Bag, file: Callable[[str], Path]) -> Release:
    """Read each file of a bag once, after all of them are there."""
    paths = {signature: file(signature) for signature in bag.signatures}
    packages = {signature: read(path) for signature, path in paths.items()}
    weights = None if bag.weights is None else [list(row) for row in bag.weights]
    return Release(name, [packages[s] for s in bag.signatures], weights, bag.segment)
