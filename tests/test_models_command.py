"""`demucs-lightning models`: list, download, remove, against a server on the loopback address."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from demucs.hf import get_hf_model
from demucs.repo import RemoteRepo

from demucs_lightning.commands import models
from demucs_lightning.pretrained import caches, released
from tests.pretrained.servers import Settings, Zoo, content, make_zoo, serving


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return make_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def server(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with serving(zoo, tmp_path, monkeypatch) as settings:
        yield settings


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    models.main(arguments)
    return capsys.readouterr().out


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as error:
        models.main(arguments)
    assert error.value.code == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    return text


def where(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The last column of the table, by name."""
    lines = run(capsys).split("\n\n")[0].splitlines()
    start = lines[0].index("on this disk")
    return {line.split()[0]: line[start:] for line in lines[1:]}


def test_the_list_of_the_released_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(caches.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    out = run(capsys, "list")
    assert run(capsys) == out
    assert re.search(
        r"^htdemucs_6s +drums bass other vocals guitar piano +1 +~55\.0 MB ", out, re.M
    )
    assert re.search(r"^mdx_q +drums bass other vocals +4 +MUSDB18-HQ +no$", out, re.M)
    assert out.rstrip().endswith(released.LICENCE)
    listed = json.loads(run(capsys, "--json"))
    assert [each["name"] for each in listed["models"]] == list(released.RELEASED)
    assert listed["models"][1]["download_bytes"] == 4 * 84_141_271
    assert listed["licence"] == released.LICENCE
    assert json.loads(run(capsys, "list", "--json")) == listed


def test_download_list_and_remove(
    server: Settings, zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(tmp_path)
    assert set(where(capsys).values()) == {"no"}
    out = run(capsys, "download", "mdx", "aaaa1111")
    assert out.count("mdx: ") == 2
    assert released.LICENCE in out
    run(capsys, "download", "--official", "htdemucs")
    assert where(capsys) == {
        "htdemucs": "hub",
        "hdemucs_mmi": "hub",
        "mdx": "hub",
        "repro_mdx_a": "1 of 2",
        "repro_mdx_a_time_only": "no",
    }
    server.requests.clear()
    run(capsys, "download", "--offline", "mdx", "htdemucs")
    assert server.requests == []

    sizes = [zoo.safetensors["aaaa1111"].stat().st_size, zoo.th["aaaa1111"].stat().st_size]
    freed = run(capsys, "remove", "htdemucs")
    assert freed == f"htdemucs: {sum(sizes) / 1e3:.1f} kB freed.\n"
    assert run(capsys, "remove", "htdemucs") == "htdemucs: nothing to remove.\n"
    run(capsys, "remove", "mdx")
    after = {name for name in content(tmp_path) if not name.endswith("CACHEDIR.TAG")}
    assert after == set(before)


@pytest.mark.parametrize("source", ["hub", "official"])
def test_the_reference_finds_what_was_downloaded(
    server: Settings,
    zoo: Zoo,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
) -> None:
    run(capsys, "download", "hdemucs_mmi", *(["--official"] if source == "official" else []))
    server.stop()
    if source == "hub":
        monkeypatch.setattr(caches.constants, "HF_HUB_OFFLINE", True)
        theirs: Any = get_hf_model("hdemucs_mmi").models[0]
    else:
        url = f"{server.url}/demucs/{released.OFFICIAL['bbbb1111'].path}"
        theirs = RemoteRepo({"bbbb1111": url}).get_model("bbbb1111")
    wanted = zoo.models["bbbb1111"].state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in theirs.state_dict().items())


def test_removing_keeps_what_a_larger_bag_that_is_here_needs(
    server: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "download", "mdx", "repro_mdx_a")
    out = run(capsys, "remove", "hdemucs_mmi")
    assert "bbbb1111: kept for mdx, which needs more" in out
    assert where(capsys)["mdx"] == "hub"
    run(capsys, "remove", "mdx")
    assert where(capsys)["mdx"] == "1 of 2"
    assert where(capsys)["repro_mdx_a"] == "hub"
    run(capsys, "remove", "mdx", "repro_mdx_a")
    assert set(where(capsys).values()) == {"no"}


def test_models_of_the_hub_and_of_a_folder(
    server: Settings, zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "download", "hf://user/mine").startswith("hf://user/mine: complete\n")
    assert run(capsys, "remove", "hf://user/mine").endswith("kB freed.\n")
    assert "nothing to remove" in run(capsys, "remove", "hf://user/mine")
    assert "leave --official out" in failed(capsys, "download", "--official", "hf://user/mine")
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "aaaa1111.th").write_bytes(b"x" * 1000)
    (folder / "mix.yaml").write_text("models: [aaaa1111, gone]")
    lines = run(capsys, "--repo", str(folder)).splitlines()
    assert [re.split("  +", line) for line in lines] == [
        ["name", "models", "size", "on this disk"],
        ["mix", "2", "1.0 kB", "1 of 2"],
        ["aaaa1111", "1", "1.0 kB", str(folder)],
    ]


def test_mistakes_are_one_sentence_and_status_1(
    server: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "did you mean htdemucs" in failed(capsys, "download", "htdemucs7")
    assert "did you mean htdemucs" in failed(capsys, "remove", "htdemucs7")
    for action in ("download", "remove"):
        assert "repro_mdx_a_time_only or hf://USER/NAME." in failed(capsys, action, "zzz")
    assert "is no folder" in failed(capsys, "--repo", str(tmp_path / "gone"))
    assert "is not to be used" in failed(capsys, "download", "--offline", "htdemucs")
    server.pages = True
    assert "a web page instead of the file" in failed(capsys, "download", "htdemucs")
    server.stop()
    assert "no connection to 127.0.0.1" in failed(capsys, "download", "htdemucs")
    with pytest.raises(SystemExit) as error:
        models.main(["fetch"])
    assert error.value.code == 2


def test_who_stops_reading_ends_it_in_silence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        with pytest.raises(SystemExit) as caught:
            models.main([])
    assert caught.value.code == 141
    assert capsys.readouterr().err == ""
