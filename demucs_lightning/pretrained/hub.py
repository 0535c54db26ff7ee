"""Files of models by name: from the caches of this disk, else the Hugging Face hub, else the
official server.

Contract: a file is returned only if its content has the checksum that the hub declares, or that the
official name carries, whether it was here or came now. What comes goes where the reference and
other programs look for it (see `caches`). The hub's address (HF_ENDPOINT), its token and
HF_HUB_OFFLINE are those of the library; DEMUCS_LIGHTNING_OFFICIAL_URL names a mirror of the
official files.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import build_hf_headers

from demucs_lightning.data import disk
from demucs_lightning.data.download import Checksum, NoAnswer, NoConnection, Source, bring
from demucs_lightning.pretrained import caches, released

OFFICIAL_URL = "https://dl.fbaipublicfiles.com/demucs/"
OFFICIAL_VARIABLE = "DEMUCS_LIGHTNING_OFFICIAL_URL"
ATTEMPTS = 3  # in a row that bring nothing, before the connection counts as down
TIMEOUT = 10.0  # seconds of each wait, as in the hub's library


@dataclass(frozen=True)
class Access:
    """How files may be got: ``offline`` from the caches alone, as with HF_HUB_OFFLINE=1;
    ``progress`` False hides the bars that a terminal is shown.
    """

    offline: bool | None = None
    progress: bool | None = None

    @property
    def caches_only(self) -> bool:
        return bool(self.offline) or constants.HF_HUB_OFFLINE

    @property
    def hidden(self) -> bool:
        return self.progress is False

    def bring(self, source: Source, path: Path) -> Path:
        return bring(source, path, attempts=ATTEMPTS, timeout=TIMEOUT, progress=self.progress)


def weights(signature: str, access: Access, *, bag: str | None = None) -> Path:
    """The file of a released model; ``bag`` is the released bag whose repository is asked first.

    A file that is here is taken without asking anyone: released models don't change. Raises
    OSError, in one sentence, if it is neither here nor to be had, or the disk or the transfer
    fails, and ValueError for wrong content.
    """
    if found := caches.cached(signature, bag=bag):
        return found[0].checked(hidden=access.hidden)
    if access.caches_only:
        raise FileNotFoundError(_nowhere(signature, bag, "The network is not to be used"))
    reasons: list[NoAnswer] = []
    for name in caches.bags_with(signature, first=bag):
        try:
            return from_hub(released.repository(name), f"{signature}.safetensors", access)
        except NoAnswer as reason:
            reasons.append(reason)
            if isinstance(reason, NoConnection):
                break
    try:
        return official(signature, access)
    except NoAnswer as reason:
        if isinstance(reasons[0], NoConnection) and isinstance(reason, NoConnection):
            hosts = f"{_host(constants.ENDPOINT)} or {_host(_official_url())}"
            because = f"There is no connection to {hosts}"
            raise OSError(_nowhere(signature, bag, because)) from reason
        said = f"{reasons[0]}; {reason}".rstrip(".")
        raise OSError(f"{_title(signature, bag)} can't be had: {said}.") from reason


def _nowhere(signature: str, bag: str | None, because: str) -> str:
    return (
        f"{because}, and {_title(signature, bag)} is not on this disk: `demucs-lightning models "
        f"download {bag or signature}` fetches it where there is a network."
    )


def _title(signature: str, bag: str | None) -> str:
    return f"{signature} of {bag}" if bag and bag != signature else signature


def _official_url() -> str:
    return (os.environ.get(OFFICIAL_VARIABLE) or OFFICIAL_URL).rstrip("/")


def official(signature: str, access: Access) -> Path:
    """The official `.th` of a released model, in torch hub's folder. Raises as `weights`, and
    NoAnswer where there is nothing to be had.
    """
    if here := caches.in_torch_cache(signature):
        return here.checked(hidden=access.hidden)
    path, file = caches.official_path(signature), released.OFFICIAL[signature]
    if access.caches_only:
        raise NoAnswer(f"{path} does not exist, and the network is not to be used.")
    url, checksum = f"{_official_url()}/{file.path}", Checksum("sha256", file.sha256)
    source = Source(url, checksum, name=path.name)
    return access.bring(source, path)


def from_hub(repository: str, filename: str, access: Access) -> Path:
    """The file of a repository as its newest revision has it, in the hub's cache.

    Where the hub does not answer, and offline: as the cache has it. Raises NoAnswer if there is
    nothing to be had, OSError for the transfer or the disk, ValueError for wrong content.
    """
    if not access.caches_only:
        try:
            _fetch_blob(repository, filename, access)
            with _told(repository, filename):  # gives the content its name in the cache
                hf_hub_download(repository, filename)
        except NoAnswer:
            if caches.in_hub_cache(repository, filename) is None:
                raise
    if here := caches.in_hub_cache(repository, filename):
        return here.checked(hidden=access.hidden)
    raise NoAnswer(
        f"{constants.HF_HUB_CACHE} has no {filename} of {repository}, and the network is not to be "
        "used."
    )


def complete_repository(name: str, access: Access) -> None:
    """Bring the yaml of a released bag beside its files, where the hub has given these.

    It says what this package knows without it; the reference does not find the files otherwise.
    """
    repository = released.repository(name)
    files = [f"{signature}.safetensors" for signature in released.RELEASED[name].bag.signatures]
    if access.caches_only or not all(caches.in_hub_cache(repository, file) for file in files):
        return
    with suppress(NoAnswer):
        from_hub(repository, f"{name}.yaml", access)


def _fetch_blob(repository: str, filename: str, access: Access) -> None:
    """Download the content of a file to where the hub's library keeps it, if it is not there.

    The library would do that too, but starts anew after a broken transfer, and compares no
    checksum.
    """
    url = hf_hub_url(repository, filename)
    with _told(repository, filename):
        found = get_hf_file_metadata(url)
    if not found.etag or not found.commit_hash:
        raise NoAnswer(f"{_host(url)} does not answer as a Hugging Face hub does")
    kind = caches.KINDS.get(len(found.etag))
    blob = caches.hub_folder(repository) / "blobs" / found.etag
    if kind and not blob.exists():
        # A file on another host comes by an address that is signed: the token is not for that.
        headers = build_hf_headers() if _host(found.location) == _host(url) else {}
        checksum = Checksum(kind, found.etag)
        source = Source(found.location, checksum, found.size, headers, name=filename)
        access.bring(source, blob)


@contextmanager
def _told(repository: str, filename: str) -> Iterator[None]:
    """Errors of the hub's library in one sentence each: NoAnswer where it gives no file."""
    host = _host(hf_hub_url(repository, filename))
    try:
        yield
    except RemoteEntryNotFoundError as error:
        raise NoAnswer(f"{repository} on {host} has no {filename}") from error
    except RepositoryNotFoundError as error:
        raise NoAnswer(f"{host} has no repository {repository}, or does not show it") from error
    except HfHubHTTPError as error:
        raise NoAnswer(f"{host} answered {error.response.status_code}") from error
    except (HTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        raise NoConnection(f"no connection to {host}") from error
    except OSError as error:
        if error.errno not in disk.FULL:
            raise
        raise OSError(f"the disk is full: {constants.HF_HUB_CACHE} needs more room.") from error


def _host(url: str) -> str:
    return urlsplit(url).netloc
