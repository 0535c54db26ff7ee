"""Safetensors files both ways, against the reference package; files that are damaged or lie."""

import inspect
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import demucs.hf
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from demucs_lightning.pretrained import tensors
from demucs_lightning.pretrained.package import build
from tests.pretrained.conftest import SMALL, reference_model, safetensors_file

KINDS = list(SMALL)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_the_reference(kind: str, tmp_path: Path, mixture: Tensor) -> None:
    path = safetensors_file(reference_model(kind), tmp_path, "abc")
    expected: Any = demucs.hf.load_safetensors_model(path).eval()
    package = tensors.read(path)
    assert (package.klass, package.origin) == (kind, str(path))
    assert package.kwargs == expected._init_args_kwargs[1]
    state = safetensors.torch.load_file(path)
    assert package.state.keys() == state.keys()
    assert all(torch.equal(package.state[name], value) for name, value in state.items())
    torch.testing.assert_close(build(package)(mixture), expected(mixture), rtol=0, atol=1e-5)


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_loads_what_is_written(
    kind: str, half: bool, tmp_path: Path, mixture: Tensor
) -> None:
    package = tensors.read(safetensors_file(reference_model(kind), tmp_path, "abc"))
    path = tmp_path / "def.safetensors"
    tensors.write(package, path, half=half)
    loaded = demucs.hf.load_safetensors_model(path).eval()
    own = build(tensors.read(path))
    torch.testing.assert_close(loaded(mixture), own(mixture), rtol=0, atol=1e-5)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        names = list(file.keys())
        dtypes = {file.get_tensor(name).dtype for name in names}
    assert dtypes == {torch.float16 if half else torch.float32}
    kwargs = json.loads(metadata["kwargs"])
    assert list(kwargs) == list(inspect.signature(type(loaded)).parameters)
    assert {name: kwargs[name] for name in ("sources", "samplerate")} == {
        "sources": package.kwargs["sources"],
        "samplerate": 8000,
    }


def test_fractions_of_a_second_are_exact(tmp_path: Path) -> None:
    path = safetensors_file(reference_model("HTDemucs"), tmp_path, "abc")
    assert tensors.read(path).kwargs["segment"] == Fraction(10_001, 8000)
    tensors.write(tensors.read(path), tmp_path / "def.safetensors")
    assert tensors.read(tmp_path / "def.safetensors").kwargs["segment"] == Fraction(10_001, 8000)


def with_metadata(path: Path, change: dict[str, str | None]) -> Path:
    with safe_open(path, framework="pt") as file:
        metadata = {**file.metadata(), **change}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, metadata=metadata)
    return path


FRACTION = (
    '{"sources": ["a"], "segment": {"_type": "fraction", "numerator": %s, "denominator": %s}}'
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"klass": None}, "does not say which model its weights are of: klass is not in its"),
        ({"args": None}, "does not say which model its weights are of: args is not in its"),
        ({"kwargs": None}, "does not say which model its weights are of: kwargs is not in its"),
        ({"klass": "os.system"}, r"holds the model os\.system; those that can be read are demucs"),
        ({"klass": "a\n" * 999}, r"holds the model (a\\n)+a?\\?; those that"),
        ({"kwargs": "{"}, "is damaged: kwargs in its metadata can't be read"),
        ({"args": "[" * 99_999}, "is damaged: args in its metadata can't be read"),
        ({"args": "[" * 99 + "]" * 99}, "is damaged: it is nested too deeply"),
        ({"args": "{}"}, "is damaged: the arguments of its Demucs have no names"),
        ({"kwargs": "[]"}, "is damaged: the arguments of its Demucs have no names"),
        ({"kwargs": '{"sources": ["a"], "color": 1}'}, "has color, which is no argument of Demucs"),
        ({"kwargs": '{"a\\nb": 1}'}, "is damaged: the arguments of its Demucs have no names"),
        ({"kwargs": FRACTION % (1, 0)}, "is damaged: kwargs in its metadata can't be read"),
        ({"kwargs": FRACTION % ("1.5", 2)}, "is damaged: kwargs in its metadata can't be read"),
        ({"kwargs": FRACTION % ('"1"', 2)}, "is damaged: kwargs in its metadata can't be read"),
        ({"kwargs": FRACTION % (10**30, 2)}, "is damaged: kwargs in its metadata can't be read"),
        ({"kwargs": '{"a": {"_type": "fraction"}}'}, "is damaged: kwargs in its metadata can't"),
        ({"structure": "["}, "is damaged: structure in its metadata can't be read"),
        ({"structure": '{"_tensor": "gone"}'}, "is damaged: structure in its metadata can't be"),
        ({"structure": '{"_class": "os.system", "a": 1}'}, "is damaged: structure in its"),
        ({"structure": '{"_import": "os"}'}, "is damaged: structure in its metadata can't be read"),
        ({"structure": "3"}, "is damaged: it does not have weights where they should be"),
    ],
)
def test_metadata_that_is_wrong(change: dict, message: str, tmp_path: Path) -> None:
    path = safetensors_file(reference_model("Demucs"), tmp_path, "abc")
    with pytest.raises(ValueError, match=rf"^\S*abc\.safetensors {message}[^\n]*\.$"):
        tensors.read(with_metadata(path, change))


def test_no_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"a\.safetensors does not say which model"):
        tensors.read(path)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = safetensors_file(reference_model("Demucs"), tmp_path, "abc")
    small = '{"sources": ["a"], "depth": 1, "channels": %s}'
    for kwargs in (small % 4, small % -1, "{}"):
        with pytest.raises(ValueError, match=r"abc\.safetensors is damaged[^\n]*\.$"):
            build(tensors.read(with_metadata(path, {"kwargs": kwargs})))


def header(content: bytes) -> dict:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def with_header(content: bytes, head: dict) -> bytes:
    text = json.dumps(head).encode()
    return (
        len(text).to_bytes(8, "little")
        + text
        + content[8 + int.from_bytes(content[:8], "little") :]
    )


@pytest.mark.parametrize("keep", [0, 4, 100, -10])
def test_a_truncated_file(keep: int, tmp_path: Path) -> None:
    path = safetensors_file(reference_model("Demucs"), tmp_path, "abc")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"abc\.safetensors is damaged"):
        tensors.read(path)


@pytest.mark.parametrize(
    "lie",
    [
        {"shape": [10**12, 4]},
        {"shape": [1]},
        {"dtype": "F64"},
        {"dtype": "X"},
        {"data_offsets": [0, 10**15]},
        {"data_offsets": [10, 0]},
    ],
)
def test_a_header_that_lies(lie: dict, tmp_path: Path) -> None:
    path = safetensors_file(reference_model("Demucs"), tmp_path, "abc")
    content = path.read_bytes()
    head = header(content)
    name = next(name for name in head if name != "__metadata__")
    path.write_bytes(with_header(content, {**head, name: {**head[name], **lie}}))
    with pytest.raises(ValueError, match=r"abc\.safetensors is damaged"):
        tensors.read(path)


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    path = safetensors_file(reference_model("Demucs"), tmp_path, "abc")
    content = path.read_bytes()
    head = header(content)
    name = next(name for name in head if name != "__metadata__")
    path.write_bytes(with_header(content, {**head, name: {**head[name], "dtype": "I16"}}))
    with pytest.raises(ValueError, match=rf"abc\.safetensors is damaged: its '{name}' holds no"):
        tensors.read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff" * 99, "is damaged"),
        (b"<html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer"),
    ],
)
def test_something_else_under_its_name(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.safetensors {message}[^\n]*\.$"):
        tensors.read(tmp_path / "a.safetensors")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.safetensors does not exist"):
        tensors.read(tmp_path / "a.safetensors")
