"""From every kind of name to a model that gives what the reference's model gives."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from demucs.apply import BagOfModels as TheirBag
from demucs.apply import apply_model
from demucs.pretrained import get_model
from torch import Tensor, nn

from demucs_lightning import pretrained
from demucs_lightning.pretrained import caches
from demucs_lightning.separation import separate
from demucs_lightning.separation.bags import BagOfModels
from tests.pretrained.servers import HALVES, Settings, Zoo, make_zoo, serving


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return make_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def server(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with serving(zoo, tmp_path, monkeypatch) as settings:
        yield settings


def assert_alike(ours: nn.Module, theirs: nn.Module, mixture: Tensor) -> None:
    assert not ours.training
    with torch.no_grad():
        torch.testing.assert_close(ours(mixture), theirs(mixture), rtol=0, atol=1e-5)


def test_a_released_name_from_the_hub(server: Settings, zoo: Zoo, mixture: Tensor) -> None:
    model = pretrained.load_model("htdemucs")
    assert_alike(model, zoo.models["aaaa1111"], mixture)
    assert model.segment == Fraction(10_001, 8000)


def test_a_signature_from_the_official_server(server: Settings, zoo: Zoo, mixture: Tensor) -> None:
    server.status = {"/adefossez": 404}
    model = pretrained.load_model("cccc1111")
    assert_alike(model, zoo.models["cccc1111"], mixture)
    assert model.segment == 2
    server.stop()
    assert_alike(pretrained.load_model("cccc1111", offline=True), zoo.models["cccc1111"], mixture)


@pytest.mark.parametrize("source", ["hub", "official"])
def test_a_bag_separates_as_the_reference_s(
    server: Settings, zoo: Zoo, mixture: Tensor, source: str
) -> None:
    if source == "official":
        server.status = {"/adefossez": 404}
    bag: Any = pretrained.load_model("mdx")
    assert isinstance(bag, BagOfModels)
    assert bag.weights == [list(row) for row in HALVES]
    assert [model.segment for model in bag.models] == [1.5, 1.5]
    members: list[Any] = [zoo.models[name] for name in ("bbbb1111", "bbbb2222")]
    theirs = TheirBag(members, [list(row) for row in HALVES])
    long = torch.cat([mixture, mixture.flip(-1)], dim=-1)
    expected = apply_model(theirs, long, shifts=0, overlap=0.25, segment=1.5)
    with torch.no_grad():
        found = separate(bag, long, overlap=0.25)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_bag_of_one_is_its_model_at_the_segment_of_the_bag(
    server: Settings, zoo: Zoo, mixture: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pretrained.load_model("hdemucs_mmi")
    assert_alike(model, zoo.models["bbbb1111"], mixture)
    assert model.segment == 1.5
    server.files["/user/Demucs-mine/resolve/main/mine.yaml"] = b"models: [aaaa1111]\nsegment: 44\n"
    server.files["/user/Demucs-mine/resolve/main/aaaa1111.safetensors"] = zoo.safetensors[
        "aaaa1111"
    ].read_bytes()
    kept = pretrained.load_model("hf://user/mine")
    assert kept.segment == kept.max_segment == Fraction(10_001, 8000)


def test_a_model_that_is_twice_in_a_bag_is_read_and_built_once(
    server: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = pretrained.find("repro_mdx_a_time_only")
    assert len(release.packages) == 2
    assert release.packages[0] is release.packages[1]
    assert len(server.ranges(".safetensors")) == 1
    bag: Any = pretrained.model_of_release(release)
    first, second = (dict(model.named_parameters()) for model in bag.models)
    assert all(first[name] is second[name] for name in first)


def test_a_released_bag_needs_no_yaml_and_a_stranger_s_does(
    server: Settings, zoo: Zoo, mixture: Tensor
) -> None:
    pretrained.find("hdemucs_mmi")
    assert not any(path.endswith(".yaml") for _, path, _ in server.requests)
    model = pretrained.load_model("hf://user/mine")
    assert_alike(model, zoo.models["bbbb1111"], mixture)
    assert model.segment == 1.5
    server.requests.clear()
    assert_alike(pretrained.load_model("hf://user/mine", offline=True), model, mixture)
    assert server.requests == []


def test_a_stranger_s_yaml_names_no_file_outside(server: Settings) -> None:
    server.files["/user/Demucs-mine/resolve/main/mine.yaml"] = b"models: ['../../aaaa1111']\n"
    with pytest.raises(ValueError, match="without folder or suffix"):
        pretrained.load_model("hf://user/mine")


def test_what_is_not_on_the_hub_is_one_sentence(server: Settings) -> None:
    with pytest.raises(OSError, match=r"hf://user/other can't be had: .* has no repository"):
        pretrained.load_model("hf://user/other")
    server.files["/user/Demucs-mine/resolve/main/mine.yaml"] = b"models: [gone]\n"
    with pytest.raises(OSError, match=r"hf://user/mine can't be had: .* has no gone.safetensors"):
        pretrained.load_model("hf://user/mine")
    for wrong in ("hf://", "hf://a/b/c", "hf://a b", "hf://../x"):
        with pytest.raises(ValueError, match="is no model of the hub: it must be hf://USER/NAME"):
            pretrained.load_model(wrong)


def test_a_local_folder_as_the_reference_reads_it(
    zoo: Zoo, tmp_path: Path, mixture: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bbbb1111", "cccc1111"):
        (tmp_path / zoo.th[name].name).write_bytes(zoo.th[name].read_bytes())
    yaml = "models: ['bbbb1111', 'cccc1111']\nweights: [[1, 0, 1, 1], [0, 1, 0, 0]]\nsegment: 1\n"
    (tmp_path / "mix.yaml").write_text(yaml)
    theirs = get_model("mix", repo=tmp_path)
    expected = apply_model(theirs, mixture, shifts=0, overlap=0.25)
    for name, repo in (("mix", tmp_path), (tmp_path / "mix.yaml", None)):
        bag: Any = pretrained.load_model(name, repo=repo)
        with torch.no_grad():
            found = separate(bag, mixture, overlap=0.25)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert_alike(pretrained.load_model("bbbb1111", repo=tmp_path), zoo.models["bbbb1111"], mixture)
    with pytest.raises(FileNotFoundError, match="has no model 'htdemucs': it has mix, bbbb1111"):
        pretrained.load_model("htdemucs", repo=tmp_path)
    with pytest.raises(ValueError, match=r"is a folder: .* \(mix, bbbb1111, cccc1111\)"):
        pretrained.load_model(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(ValueError, match=rf"^{tmp_path.name} is a folder: .* as repo\.$"):
        pretrained.load_model(tmp_path.name)


def test_a_released_name_is_not_that_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("htdemucs").mkdir()
    with pytest.raises(FileNotFoundError, match="network is not to be used"):
        pretrained.load_model("htdemucs", offline=True)


def test_a_bare_path(zoo: Zoo, mixture: Tensor) -> None:
    for path in (zoo.th["aaaa1111"], str(zoo.safetensors["aaaa1111"])):
        assert_alike(pretrained.load_model(path), zoo.models["aaaa1111"], mixture)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("htdemucs-ft", "did you mean htdemucs_ft or"),
        ("HTDemucs", r"did you mean htdemucs"),
        ("955717e9", "did you mean 955717e8"),
        ("zzz", r"it must be one of htdemucs, .*hf://USER/NAME or a path"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"There is no model {name!r}: {says}"):
        pretrained.load_model(name)


@pytest.mark.parametrize("name", ["best.ckpt", "runs/best", "~/x.th", "C:\\x.safetensors"])
def test_a_path_that_does_not_exist_is_told_as_a_path(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist: a file of weights is expected"):
        pretrained.load_model(name)


def test_a_file_of_another_kind_is_told_which_are_read(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"model\.onnx can't be read: its name must end in \.ckpt"):
        pretrained.load_model(tmp_path / "model.onnx")


def test_a_bag_comes_as_a_whole_or_says_what_is_missing(server: Settings) -> None:
    server.files.pop(next(path for path in server.files if "/demucs/v4/bbbb2222" in path))
    for path in [path for path in server.files if path.endswith("bbbb2222.safetensors")]:
        server.files.pop(path)
    with pytest.raises(OSError, match=r"bbbb2222 of mdx can't be had: .* 404 Not Found\.$"):
        pretrained.load_model("mdx")
    assert len(caches.cached("bbbb1111")) == 1  # what came stays, for the next time


def test_the_library_s_variables_are_honoured(server: Settings, tmp_path: Path) -> None:
    """In a process of its own: huggingface_hub reads them when it is imported."""
    code = (
        "import demucs_lightning as d, os\n"
        "assert d.load_model('hf://user/mine').segment == 1.5\n"
        "assert d.load_model('hf://user/mine', offline=True).segment == 1.5\n"
        "assert os.path.isdir(os.environ['HF_HOME'] + '/hub/models--user--Demucs-mine/blobs')"
    )
    own = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "own")}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **own}, cwd=root, check=True)
