"""Official packages both ways, against the reference package; files that are hostile or damaged."""

import inspect
import pickle
import pickletools
import sys
import zipfile
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import demucs.pretrained
import demucs.states
import numpy as np
import pytest
import torch
from torch import Tensor

from demucs_lightning.pretrained import official
from demucs_lightning.pretrained.package import Package, build
from tests.pretrained.conftest import (
    RAW,
    SMALL,
    Raw,
    official_file,
    official_package,
    reference_model,
)

KINDS = list(SMALL)


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


@pytest.fixture
def package() -> Package:
    """A model of ours, as a checkpoint would give it."""
    model = reference_model("HTDemucs")
    kwargs = {**SMALL["HTDemucs"][1], "sources": ["a", "b", "c", "d"], "samplerate": 8000}
    return Package("HTDemucs", {**kwargs, "segment": 1.3}, model.state_dict(), "run/best.ckpt")


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_the_reference(
    kind: str, checksum: bool, tmp_path: Path, mixture: Tensor
) -> None:
    path = official_file(reference_model(kind), tmp_path, "abc", checksum=checksum)
    expected = demucs.states.load_model(path).eval()
    package = official.read(path)
    assert (package.klass, package.origin) == (kind, str(path))
    assert package.kwargs == expected._init_args_kwargs[1]
    state = torch.load(path, weights_only=False)["state"]
    assert list(package.state) == list(state)
    assert all(torch.equal(package.state[name], value) for name, value in state.items())
    assert {value.dtype for value in package.state.values()} == {torch.float16}
    torch.testing.assert_close(build(package)(mixture), expected(mixture), rtol=0, atol=1e-5)


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_loads_what_is_written(
    kind: str, half: bool, tmp_path: Path, mixture: Tensor
) -> None:
    package = official.read(official_file(reference_model(kind), tmp_path, "abc"))
    (tmp_path / "repo").mkdir()
    path = tmp_path / "repo" / "def.th"
    official.write(package, path, half=half)
    own = build(official.read(path))
    for loaded in (
        demucs.states.load_model(path, strict=True).eval(),
        demucs.pretrained.get_model("def", repo=tmp_path / "repo"),
    ):
        torch.testing.assert_close(loaded(mixture), own(mixture), rtol=0, atol=1e-5)
    content = torch.load(path, weights_only=False)
    wanted = torch.float16 if half else torch.float32
    assert {value.dtype for value in content["state"].values()} == {wanted}
    assert content["args"] == ()
    assert [path.name for path in (tmp_path / "repo").iterdir()] == ["def.th"]


def test_every_argument_is_written(package: Package, tmp_path: Path) -> None:
    official.write(package, tmp_path / "a.th")
    content = torch.load(tmp_path / "a.th", weights_only=False)
    assert list(content["kwargs"]) == list(inspect.signature(content["klass"]).parameters)
    assert content["kwargs"]["segment"] == Fraction(10_400, 8000)
    assert {**content["kwargs"], **package.kwargs, "segment": 0} == {
        **content["kwargs"],
        "segment": 0,
    }


def test_the_reference_is_not_needed(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "demucs"]:
        monkeypatch.setitem(sys.modules, name, None)
    official.write(package, tmp_path / "a.th", half=False)
    found = official.read(tmp_path / "a.th")
    assert all(torch.equal(found.state[name], value) for name, value in package.state.items())
    with zipfile.ZipFile(tmp_path / "a.th") as archive:
        names = [
            arg
            for op, arg, _ in pickletools.genops(archive.read("archive/data.pkl"))
            if op.name == "GLOBAL"
        ]
    assert "demucs.htdemucs HTDemucs" in names


def test_arguments_by_place(tmp_path: Path) -> None:
    content = official_package(reference_model("Demucs"))
    sources = content["kwargs"].pop("sources")
    content["args"] = (sources, 2)
    assert official.read(save(content, tmp_path / "a.th")).kwargs["audio_channels"] == 2
    content["kwargs"]["sources"] = sources
    with pytest.raises(ValueError, match=r"a\.th is damaged: it has sources of its Demucs twice"):
        official.read(save(content, tmp_path / "a.th"))
    content["args"] = tuple(range(99))
    with pytest.raises(ValueError, match=r"a\.th has 99 arguments, but Demucs takes 25"):
        official.read(save(content, tmp_path / "a.th"))


@pytest.mark.parametrize("terms", [b"X\x04\x00\x00\x0039/5\x85", b"K\x27K\x05\x86"])
def test_numbers_of_numpy_and_fractions_of_any_python(terms: bytes, tmp_path: Path) -> None:
    content = official_package(reference_model("Demucs"))
    content["metrics"] = ({"nsdr": np.float64(5.5)}, {"sdr": np.float32(5.25)})
    content["state"] = OrderedDict(content["state"])
    content["kwargs"] |= {
        "segment": Raw(b"cfractions\nFraction\n" + terms + b"R"),
        "rescale": np.float64(0.1),
        "depth": np.int64(2),
        "samplerate": Raw(pickle.dumps(np.dtype(">i4").type(8000), protocol=2)[2:-1]),
    }
    torch.save(content, tmp_path / "a.th", pickle_module=RAW)
    kwargs = official.read(tmp_path / "a.th").kwargs
    assert kwargs["segment"] == Fraction(39, 5)
    assert [kwargs[name] for name in ("rescale", "depth", "samplerate")] == [0.1, 2, 8000]
    assert [type(kwargs[name]) for name in ("rescale", "depth")] == [float, int]


def test_the_former_name_of_a_class(tmp_path: Path) -> None:
    content = official_package(reference_model("HDemucs"))
    content["klass"] = Raw(b"cdemucs.wdemucs\nWDemucs\n")
    torch.save(content, tmp_path / "a.th", pickle_module=RAW)
    assert official.read(tmp_path / "a.th").klass == "HDemucs"


def test_layers_as_they_were_once_counted(tmp_path: Path) -> None:
    model = reference_model("Demucs", dconv_mode=0)
    content = official_package(model)
    current = content["state"]
    old = {name.replace(".3.", ".2."): value for name, value in current.items()}
    assert old.keys() != current.keys()
    found = official.read(save({**content, "state": old}, tmp_path / "a.th"))
    assert all(torch.equal(found.state[name], value) for name, value in current.items())
    demucs.states.load_model(tmp_path / "a.th", strict=True)


def test_norms_where_old_files_have_convolutions(tmp_path: Path) -> None:
    model = reference_model("Demucs", rewrite=False, norm_starts=0, dconv_mode=2)
    content = official_package(model)
    assert "decoder.0.2.weight" in content["state"]
    assert official.read(save(content, tmp_path / "a.th")).state.keys() == content["state"].keys()


def test_the_format_of_torch_before_1_6(tmp_path: Path, package: Package) -> None:
    path = tmp_path / "a.th"
    torch.save(
        official_package(reference_model("Demucs")), path, _use_new_zipfile_serialization=False
    )
    with pytest.raises(ValueError, match=r"a\.th is in a format of torch before 1\.6"):
        official.read(path)
    content = {"klass": official.Named("demucs.htdemucs.HTDemucs"), "args": (), "state": {}}
    content |= {"kwargs": package.kwargs, "state": dict(package.state)}
    naming: Any = SimpleNamespace(**vars(official.NAMING), dump=pickle.dump)
    torch.save(content, path, pickle_module=naming, _use_new_zipfile_serialization=False)
    found = official.read(path)
    assert all(torch.equal(found.state[name], value) for name, value in package.state.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"klass": "demucs.demucs.Demucs"}, "what it calls its model is no class"),
        ({"klass": 3}, "what it calls its model is no class"),
        ({"args": None}, "the arguments of its Demucs have no names"),
        ({"kwargs": [1]}, "the arguments of its Demucs have no names"),
        ({"kwargs": {"sources": ["a"], "color": 1}}, "has color, which is no argument of Demucs"),
        ({"kwargs": {"sources": torch.zeros(1)}}, "sources of its Demucs is not plain data"),
        ({"kwargs": {"sources": [torch.float16]}}, "sources of its Demucs is not plain data"),
        ({"state": None}, "it does not have weights where they should be"),
        ({"state": {1: torch.zeros(1)}}, "its 1 holds no weights"),
    ],
)
def test_a_part_that_is_wrong(change: dict, message: str, tmp_path: Path) -> None:
    content = official_package(reference_model("Demucs"))
    with pytest.raises(ValueError, match=rf"a\.th (is damaged: )?{message}\.$"):
        official.read(save({**content, **change}, tmp_path / "a.th"))


@pytest.mark.parametrize("content", [{"state": {}}, [1], {"klass": 1, "args": (), "kwargs": {}}])
def test_a_file_of_something_else(content: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.th is not an official package"):
        official.read(save(content, tmp_path / "a.th"))


@pytest.mark.parametrize("keep", [0, 10, 1000, -100])
def test_a_truncated_file(keep: int, tmp_path: Path) -> None:
    path = official_file(reference_model("Demucs"), tmp_path, "abc", checksum=False)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"abc\.th is damaged"):
        official.read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"\n  <html>", "is a web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is a web page"),
        (b" < 5", "is damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "is a Git LFS pointer"),
        (b"noise" * 99, "is damaged"),
    ],
)
def test_something_else_under_its_name(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.th").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.th {message}[^\n]*\.$"):
        official.read(tmp_path / "a.th")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.th does not exist: an official package"):
        official.read(tmp_path / "a.th")
    with pytest.raises(FileNotFoundError):
        official.read(tmp_path)


def test_flipped_bits_are_noticed(tmp_path: Path) -> None:
    model = reference_model("Demucs")
    path = official_file(model, tmp_path, "abc")
    content = bytearray(path.read_bytes())
    weight = next(iter(model.state_dict().values())).half().numpy().tobytes()
    content[content.index(weight)] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: the checksum of archive/data/"):
        official.read(path)


def test_what_would_grow_is_not_opened(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.th", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": "b" * 10**6}, protocol=2))
        archive.writestr("archive/version", "3")
    with pytest.raises(ValueError, match=r"a\.th is damaged"):
        official.read(tmp_path / "a.th")


def test_what_can_not_be_written(package: Package, tmp_path: Path) -> None:
    path = tmp_path / "a.th"
    path.write_bytes(b"former")
    name = next(iter(package.state))
    large = {**package.state, name: package.state[name] + 1e5}
    wrong = {**package.state, name: package.state[name][:1]}
    for change, message in (
        ({"state": large}, rf"best\.ckpt has values in {name} that half precision can't hold"),
        ({"state": wrong}, rf"best\.ckpt is damaged: its {name} does not fit"),
        ({"klass": "mine.Model"}, r"best\.ckpt holds the model mine\.Model"),
        ({"kwargs": {**package.kwargs, "color": 1}}, "color, which is no argument of HTDemucs"),
    ):
        with pytest.raises(ValueError, match=message):
            official.write(Package(**{**vars(package), **change}), path)
    assert path.read_bytes() == b"former"
    official.write(Package(**{**vars(package), "state": large}), path, half=False)
    assert torch.equal(official.read(path).state[name], large[name])
