"""Small released models, and a server on the loopback address that offers them as the Hugging Face
hub and the official server do, and misbehaves when told to.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from torch import nn

from demucs_lightning.data import download
from demucs_lightning.pretrained import released
from demucs_lightning.pretrained.bags import Bag
from demucs_lightning.pretrained.hub import OFFICIAL_VARIABLE
from demucs_lightning.pretrained.released import OfficialFile, Released
from tests.pretrained.conftest import official_file, reference_model, safetensors_file

COMMIT = "c" * 40
HALVES = ((1.0, 1.0, 0.0, 0.5), (0.0, 1.0, 1.0, 1.5))
TABLE = {
    "htdemucs": Bag(("aaaa1111",)),
    "hdemucs_mmi": Bag(("bbbb1111",), None, 1.5),
    "mdx": Bag(("bbbb1111", "bbbb2222"), HALVES, 1.5),
    "repro_mdx_a": Bag(("cccc1111", "bbbb2222"), None, 1.5),
    "repro_mdx_a_time_only": Bag(("cccc1111", "cccc1111"), None, 1.5),
}


@dataclass
class Zoo:
    """Models of the reference by signature, and the files that its tools make of them."""

    models: dict[str, nn.Module]
    th: dict[str, Path]
    safetensors: dict[str, Path]


def make_zoo(folder: Path) -> Zoo:
    models = {
        "aaaa1111": reference_model("HTDemucs", seed=1),
        "bbbb1111": reference_model("HDemucs", seed=2),
        "bbbb2222": reference_model("HDemucs", seed=3),
        "cccc1111": reference_model("Demucs", seed=4),
    }
    for model in models.values():
        model.half().float()  # as the files keep them
    return Zoo(
        models,
        {name: official_file(model, folder, name) for name, model in models.items()},
        {name: safetensors_file(model, folder, name) for name, model in models.items()},
    )


@dataclass
class Settings:
    """What is served, by path, and how; each of `breaks` ends a GET after that many bytes."""

    url: str
    files: dict[str, bytes]
    breaks: list[int] = field(default_factory=list)
    status: dict[str, int] = field(default_factory=dict)  # by the start of the path
    pages: bool = False  # a web page in place of any file
    elsewhere: bool = False  # the hub sends for files to another host, as it does for large ones
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    tokens: list[tuple[str, str | None]] = field(default_factory=list)
    stop: Any = None

    def ranges(self, end: str) -> list[str | None]:
        """The `Range` of every GET of a path that ends so."""
        return [r for method, path, r in self.requests if method == "GET" and path.endswith(end)]


class Server(ThreadingHTTPServer):
    settings: Settings


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        assert isinstance(self.server, Server)
        server = self.server.settings
        server.requests.append((self.command, self.path, self.headers.get("Range")))
        server.tokens.append((self.headers.get("Host", ""), self.headers.get("Authorization")))
        status = [code for start, code in server.status.items() if self.path.startswith(start)]
        body = server.files.get(self.path.removeprefix("/cdn"))
        if status or body is None:
            repository = self.path.partition("/resolve/")[0]
            known = any(path.startswith(f"{repository}/resolve/") for path in server.files)
            code = "" if status else "EntryNotFound" if known else "RepoNotFound"
            return self.give(status[0] if status else 404, b"", {"X-Error-Code": code})
        headers = {"Content-Type": "application/octet-stream", "ETag": f'"{etag(self.path, body)}"'}
        if "/resolve/" in self.path:
            headers["X-Repo-Commit"] = COMMIT
        if server.elsewhere and self.path.endswith("safetensors") and "/cdn" not in self.path:
            there = server.url.replace("127.0.0.1", "localhost")
            linked = {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(body))}
            headers |= linked | {"Location": f"{there}/cdn{self.path}"}
            return self.give(302, b"", headers)
        if server.pages and self.command == "GET":
            return self.give(200, b"<html>sign in</html>", {"Content-Type": "text/html"})
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=")[:-1])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return self.give(206 if start else 200, body[start:], headers)

    def give(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        assert isinstance(self.server, Server)
        server = self.server.settings
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "GET" and status < 300:
            if server.breaks:
                body = body[: server.breaks.pop(0)]
            self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


def etag(path: str, body: bytes) -> str:
    """What the hub says of a file: large ones by sha256, others as git names them."""
    if path.endswith(".safetensors"):
        return hashlib.sha256(body).hexdigest()
    return hashlib.sha1(f"blob {len(body)}\0".encode() + body).hexdigest()


@contextmanager
def serving(zoo: Zoo, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """The models of the zoo as the released ones, served in both layouts, and empty caches below
    `folder`.
    """
    official = {s: OfficialFile(f"v4/{p.name}", p.stem[-8:]) for s, p in zoo.th.items()}
    files = {f"/demucs/{official[s].path}": path.read_bytes() for s, path in zoo.th.items()}
    for name, bag in TABLE.items():
        yaml = f"models: {list(bag.signatures)}\nsegment: {json.dumps(bag.segment)}\n"
        files[f"/{released.repository(name)}/resolve/main/{name}.yaml"] = yaml.encode()
        for signature in bag.signatures:
            path = f"/{released.repository(name)}/resolve/main/{signature}.safetensors"
            files[path] = zoo.safetensors[signature].read_bytes()
    files["/user/Demucs-mine/resolve/main/mine.yaml"] = b"models: [bbbb1111]\nsegment: 1.5\n"
    files["/user/Demucs-mine/resolve/main/bbbb1111.safetensors"] = zoo.safetensors[
        "bbbb1111"
    ].read_bytes()
    table = {name: Released(bag, "noise") for name, bag in TABLE.items()}
    monkeypatch.setattr(released, "RELEASED", table)
    monkeypatch.setattr(released, "OFFICIAL", official)

    http = Server(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{http.server_port}"
    http.settings = Settings(url, files)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(download, "BACKOFF", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setenv("TORCH_HOME", str(folder / "torch"))
    monkeypatch.setenv(OFFICIAL_VARIABLE, f"{url}/demucs")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    stopped = threading.Event()

    def stop() -> None:
        if not stopped.is_set():
            stopped.set()
            http.shutdown()
            thread.join()
            http.server_close()

    http.settings.stop = stop
    yield http.settings
    stop()


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, to compare what was there before and after."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if ".locks" not in p.parts}
