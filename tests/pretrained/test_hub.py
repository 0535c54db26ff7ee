"""Files by name from a server that is both the hub and the official one, and is broken in turn."""

import errno
import hashlib
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants, hf_hub_download, scan_cache_dir

from demucs_lightning.data import disk
from demucs_lightning.pretrained import caches, hub
from demucs_lightning.pretrained.hub import Access
from tests.pretrained import servers
from tests.pretrained.servers import COMMIT, Settings, Zoo, content, make_zoo, serving

ONLINE, OFFLINE = Access(), Access(offline=True)
TOOK = "aaaa1111.safetensors"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return make_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def server(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with serving(zoo, tmp_path, monkeypatch) as settings:
        yield settings


def test_the_hub_comes_first_and_its_cache_is_the_library_s_own(
    server: Settings, zoo: Zoo, tmp_path: Path
) -> None:
    path = hub.weights("aaaa1111", ONLINE)
    assert path.read_bytes() == zoo.safetensors["aaaa1111"].read_bytes()
    assert not any("/demucs/" in asked for _, asked, _ in server.requests)
    (repo,) = scan_cache_dir(tmp_path / "hf" / "hub").repos
    assert repo.repo_id == "adefossez/HTDemucs"
    assert [revision.commit_hash for revision in repo.revisions] == [COMMIT]
    there = hf_hub_download("adefossez/HTDemucs", TOOK, local_files_only=True)
    assert Path(there) == path
    server.requests.clear()
    assert hub.weights("aaaa1111", ONLINE) == path
    assert server.requests == []


def test_the_official_file_comes_where_the_hub_has_none(
    server: Settings, zoo: Zoo, tmp_path: Path
) -> None:
    server.status = {"/adefossez": 404}
    path = hub.weights("aaaa1111", ONLINE)
    assert path == tmp_path / "torch" / "hub" / "checkpoints" / zoo.th["aaaa1111"].name
    assert path.read_bytes() == zoo.th["aaaa1111"].read_bytes()


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_the_official_file_comes_where_the_hub_fails(server: Settings, status: int) -> None:
    server.status = {"/adefossez": status}
    assert hub.weights("aaaa1111", ONLINE).suffix == ".th"


def test_what_the_reference_fetched_is_found(server: Settings, zoo: Zoo, tmp_path: Path) -> None:
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    shutil.copy(zoo.th["aaaa1111"], folder)
    assert hub.weights("aaaa1111", OFFLINE).parent == folder
    hf_hub_download("adefossez/Demucs-mdx", "bbbb1111.safetensors")
    server.requests.clear()
    assert hub.weights("bbbb1111", OFFLINE).suffix == ".safetensors"
    assert server.requests == []


def test_a_signature_is_taken_from_any_repository_that_has_it(server: Settings) -> None:
    server.status = {"/adefossez/HDemucs": 404, "/adefossez/Demucs-hdemucs_mmi": 404}
    path = hub.weights("bbbb1111", ONLINE)
    assert "models--adefossez--Demucs-mdx" in path.parts


def test_the_repository_of_the_bag_is_asked_first(server: Settings) -> None:
    path = hub.weights("bbbb1111", ONLINE, bag="mdx")
    assert "models--adefossez--Demucs-mdx" in path.parts


def test_a_broken_transfer_from_the_hub_goes_on_at_once_and_later(
    server: Settings, zoo: Zoo, tmp_path: Path
) -> None:
    server.breaks = [1000, 2000, 0, 0, 0]
    with pytest.raises(OSError, match=r"stopped after 3000 of \d+ bytes .*run it again"):
        hub.weights("aaaa1111", ONLINE)
    assert caches.cached("aaaa1111") == []
    assert hub.weights("aaaa1111", ONLINE).read_bytes() == zoo.safetensors["aaaa1111"].read_bytes()
    later = [None, "bytes=1000-", *["bytes=3000-"] * 4]
    assert server.ranges(TOOK) == later
    assert not list(tmp_path.rglob("*.part"))


def test_a_broken_transfer_of_an_official_file_goes_on_later(
    server: Settings, zoo: Zoo, tmp_path: Path
) -> None:
    server.breaks = [5000, 0, 0, 0]
    with pytest.raises(OSError, match=r"stopped after 5000 of \d+ bytes .*run it again"):
        hub.official("aaaa1111", ONLINE)
    path = tmp_path / "torch" / "hub" / "checkpoints" / zoo.th["aaaa1111"].name
    assert not path.exists()
    assert hub.official("aaaa1111", ONLINE) == path
    assert path.read_bytes() == zoo.th["aaaa1111"].read_bytes()
    assert server.ranges(".th")[-1] == "bytes=5000-"
    assert list(path.parent.iterdir()) == [path]


def corrupted(body: bytes) -> bytes:
    return body[:5000] + bytes([body[5000] ^ 1]) + body[5001:]


def test_wrong_content_from_the_hub_is_refused(
    server: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.weights("bbbb1111", ONLINE)
    before = content(tmp_path)
    (path,) = [p for p in server.files if p.endswith(TOOK)]
    right = server.files[path]
    declared = hashlib.sha256(right).hexdigest()
    monkeypatch.setattr(servers, "etag", lambda *_: declared)
    server.files[path] = corrupted(right)
    with pytest.raises(
        ValueError, match=r"^aaaa1111\.safetensors has sha256 \w{8} instead .*it was deleted.*\.$"
    ):
        hub.weights("aaaa1111", ONLINE)
    assert content(tmp_path) == before
    server.files[path] = right
    assert hub.weights("aaaa1111", ONLINE).read_bytes() == right


def test_a_wrong_official_file_is_refused(server: Settings, tmp_path: Path) -> None:
    hub.official("bbbb1111", ONLINE)
    before = content(tmp_path)
    (path,) = [p for p in server.files if "aaaa1111-" in p]
    server.files[path] = corrupted(server.files[path])
    with pytest.raises(ValueError, match=r"aaaa1111-.*has sha256 \w{8} instead of \w{8}: it was"):
        hub.official("aaaa1111", ONLINE)
    assert content(tmp_path) == before


@pytest.mark.parametrize("source", ["hub", "official"])
def test_damage_in_a_cache_is_found_and_only_the_damaged_file_goes(
    server: Settings, tmp_path: Path, source: str
) -> None:
    fetch = hub.weights if source == "hub" else hub.official
    fetch("bbbb1111", ONLINE)
    before = content(tmp_path)
    path = fetch("aaaa1111", ONLINE)
    damaged = path.resolve()
    path.write_bytes(corrupted(path.read_bytes()))
    with pytest.raises(ValueError, match="aaaa1111.* was damaged, its sha256 .*run it again"):
        hub.weights("aaaa1111", OFFLINE)
    after = content(tmp_path)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if "aaaa1111" in name]
    assert not damaged.exists()
    assert fetch("aaaa1111", ONLINE).is_file()


def test_without_network_one_short_sentence_begins_with_the_reason(
    server: Settings, tmp_path: Path
) -> None:
    hub.weights("bbbb1111", ONLINE)
    before = content(tmp_path)
    server.stop()
    with pytest.raises(OSError) as error:  # noqa: PT011
        hub.weights("aaaa1111", ONLINE, bag="htdemucs")
    text = str(error.value)
    assert text.startswith("There is no connection to 127.0.0.1:")
    assert "and aaaa1111 of htdemucs is not on this disk: `demucs-lightning models do" in text
    assert len(text.split()) < 30
    assert content(tmp_path) == before
    assert hub.weights("bbbb1111", ONLINE).is_file()


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_offline_asks_nobody(server: Settings, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    access = OFFLINE if how == "argument" else ONLINE
    hub.weights("bbbb1111", ONLINE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "variable")
    server.requests.clear()
    assert hub.weights("bbbb1111", access).is_file()
    with pytest.raises(
        FileNotFoundError, match="network is not to be used, and aaaa1111 is not .*download aaaa1"
    ):
        hub.weights("aaaa1111", access)
    with pytest.raises(OSError, match="does not exist, and the network"):
        hub.official("aaaa1111", access)
    with pytest.raises(OSError, match=r"has no mine.yaml of user/Demucs-mine"):
        hub.from_hub("user/Demucs-mine", "mine.yaml", access)
    assert server.requests == []


def test_nowhere_to_be_had_names_both_answers(server: Settings) -> None:
    server.files.clear()
    with pytest.raises(OSError, match=r"had: .*no repository .*/HTDemucs.*; .*404 Not Found\.$"):
        hub.weights("aaaa1111", ONLINE)


@pytest.mark.parametrize("fetch", [hub.weights, hub.official])
def test_a_web_page_is_not_taken_for_weights(server: Settings, tmp_path: Path, fetch: Any) -> None:
    server.pages = True
    with pytest.raises(OSError, match=r"^aaaa1111[\w.-]* comes as a web page .*\.$"):
        fetch("aaaa1111", ONLINE)
    assert caches.cached("aaaa1111") == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("fetch", [hub.weights, hub.official])
def test_a_full_disk_is_one_sentence_and_nothing_stands_half_written(
    server: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetch: Any
) -> None:
    whole_write: Any = disk.write

    class Full:
        def __init__(self, file):
            self.file, self.name = file, file.name

        def write(self, view):
            if self.file.tell() >= 4000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(view[:4000])

    monkeypatch.setattr(
        disk, "write", lambda file, chunk, **kwargs: whole_write(Full(file), chunk, **kwargs)
    )
    with pytest.raises(OSError, match=r"disk is full: aaaa1111[\w.-]* needs .* run it again\.$"):
        fetch("aaaa1111", ONLINE)
    assert caches.cached("aaaa1111") == []
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {".part"}
    monkeypatch.setattr(disk, "write", whole_write)
    assert fetch("aaaa1111", ONLINE).is_file()
    assert "bytes=4000-" in [asked for _, _, asked in server.requests]


def test_too_little_room_is_said_before_the_transfer(
    server: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    for fetch in (hub.weights, hub.official):
        with pytest.raises(OSError, match=r"has 1\.0 kB free, but .* are needed to fetch"):
            fetch("aaaa1111", ONLINE)
    assert caches.cached("aaaa1111") == []


def test_a_file_on_another_host_comes_without_the_token(
    server: Settings, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.elsewhere = True
    path = hub.weights("aaaa1111", ONLINE)
    assert path.read_bytes() == zoo.safetensors["aaaa1111"].read_bytes()
    sent = {host.split(":")[0]: token for host, token in server.tokens}
    assert sent == {"127.0.0.1": "Bearer hf_secret", "localhost": None}


def test_a_repository_is_asked_for_news_and_its_cache_serves_without_network(
    server: Settings,
) -> None:
    old = hub.from_hub("user/Demucs-mine", "mine.yaml", ONLINE)
    server.files["/user/Demucs-mine/resolve/main/mine.yaml"] = b"models: [aaaa1111]\n"
    assert old.read_bytes() == b"models: [bbbb1111]\nsegment: 1.5\n"
    server.status = {"/user": 503}
    assert hub.from_hub("user/Demucs-mine", "mine.yaml", ONLINE) == old
    server.stop()
    assert hub.from_hub("user/Demucs-mine", "mine.yaml", ONLINE) == old


def test_a_server_that_is_no_hub_is_said(
    server: Settings, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = f"{server.url}/demucs/v4/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(OSError, match="does not answer as a Hugging Face hub does"):
        hub.from_hub("adefossez/HTDemucs", zoo.th["aaaa1111"].name, ONLINE)


def test_a_file_that_its_repository_lacks_is_named(server: Settings) -> None:
    with pytest.raises(OSError, match=r"user/Demucs-mine on 127\.0\.0\.1:\d+ has no bbbb2222"):
        hub.from_hub("user/Demucs-mine", "bbbb2222.safetensors", ONLINE)


@pytest.mark.parametrize("fetch", [hub.weights, hub.official])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_with_the_time_left_is_for_terminals(
    server: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fetch: Any,
    terminal: bool,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    fetch("aaaa1111", ONLINE)
    shown = capsys.readouterr().err
    assert bool(re.search(r"fetching .*0%.*\?B/s\]", shown)) is terminal
    fetch("bbbb1111", Access(progress=False))
    fetch("bbbb1111", Access(progress=False))
    assert capsys.readouterr().err == ""


def test_a_hub_out_of_reach_is_asked_once(
    server: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def unreachable(url: str) -> None:
        asked.append(url)
        raise ConnectionError

    monkeypatch.setattr(hub, "get_hf_file_metadata", unreachable)
    assert hub.weights("bbbb1111", ONLINE).suffix == ".th"
    assert len(asked) == 1
