"""What the caches of this disk have of the released models; no network.

They are those of the Hugging Face hub's library (HF_HOME) and of torch hub (TORCH_HOME), where the
reference and other programs look too.
"""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name

from demucs_lightning.data.download import Checksum
from demucs_lightning.pretrained import released

KINDS = {64: "sha256", 40: "git"}  # what an ETag of the hub is, by its length


@dataclass(frozen=True)
class Cached:
    """A file in a cache, and its checksum if that is known; ``source`` is hub or official."""

    path: Path
    checksum: Checksum | None
    source: str

    @property
    def blob(self) -> Path | None:
        """Where the content is, if the hub's cache has it apart from the name."""
        return self.path.parent / self.path.readlink() if self.path.is_symlink() else None

    def checked(self, *, hidden: bool = False) -> Path:
        """The path, if the content is right; otherwise the file is deleted, so that the next run
        does not find it, and ValueError raised. `hidden`: without a bar.
        """
        if self.checksum is None or self.checksum.fits(self.path, hidden=hidden):
            return self.path
        self.delete()
        raise ValueError(
            f"{self.path} was damaged, its {self.checksum.kind} did not begin with "
            f"{self.checksum.digest[:8]}, and is deleted: run it again to fetch it anew."
        )

    def delete(self) -> int:
        """Delete name and content; the bytes that this frees."""
        files = [self.path, self.blob] if self.blob else [self.path]
        freed = sum(f.lstat().st_size for f in files if f.is_file() and not f.is_symlink())
        for file in files:
            file.unlink(missing_ok=True)
        return freed


def cached(signature: str, *, bag: str | None = None) -> list[Cached]:
    """The files of a released model that the caches have, unchecked; first those of the hub, and
    of these the one of the repository of ``bag``.
    """
    names = bags_with(signature, first=bag)
    found = [in_hub_cache(released.repository(n), f"{signature}.safetensors") for n in names]
    found.append(in_torch_cache(signature))
    return [file for file in found if file]


def bags_with(signature: str, *, first: str | None = None) -> list[str]:
    """The released bags that hold this model, ``first`` before the others."""
    return sorted(released.bags_with(signature), key=lambda name: name != first)


def hub_folder(repository: str) -> Path:
    """Where the hub's cache has what it has of a repository."""
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")


def in_hub_cache(repository: str, filename: str) -> Cached | None:
    """A file as the newest revision that the cache knows has it."""
    found = try_to_load_from_cache(repository, filename)
    return _of_hub(Path(found)) if isinstance(found, str) else None


def _of_hub(path: Path) -> Cached:
    etag = path.readlink().name if path.is_symlink() else ""
    checksum = Checksum(KINDS[len(etag)], etag) if len(etag) in KINDS else None
    return Cached(path, checksum, "hub")


def official_path(signature: str) -> Path:
    """Where the official file of a released model is, or would be."""
    return Path(torch.hub.get_dir(), "checkpoints", Path(released.OFFICIAL[signature].path).name)


def in_torch_cache(signature: str) -> Cached | None:
    path = official_path(signature)
    checksum = Checksum("sha256", released.OFFICIAL[signature].sha256)
    return Cached(path, checksum, "official") if path.is_file() else None


def remove(signatures: Iterable[str]) -> int:
    """Delete all that the caches have of these released models; the bytes that this frees.

    A repository of the hub's cache that is left without weights goes as a whole.
    """
    signatures = list(signatures)
    freed = sum(file.delete() for signature in signatures for file in _everywhere(signature))
    for signature in signatures:
        path = official_path(signature)
        path.with_name(f"{path.name}.part").unlink(missing_ok=True)
    names = {name for signature in signatures for name in released.bags_with(signature)}
    for repository in map(released.repository, names):
        if not any(hub_folder(repository).glob("snapshots/*/*.safetensors")):
            freed += remove_repository(repository)
    return freed


def remove_repository(repository: str) -> int:
    """Delete all that the hub's cache has of a repository; the bytes that this frees."""
    folder = hub_folder(repository)
    if not folder.is_dir():
        return 0
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    freed = sum(path.stat().st_size for path in files)
    shutil.rmtree(folder)
    return freed


def _everywhere(signature: str) -> Iterator[Cached]:
    """The files of a model in the caches, in old revisions of its repositories too."""
    for name in released.bags_with(signature):
        folder = hub_folder(released.repository(name))
        for path in sorted(folder.glob(f"snapshots/*/{signature}.safetensors")):
            yield _of_hub(path)
    if official := in_torch_cache(signature):
        yield official
