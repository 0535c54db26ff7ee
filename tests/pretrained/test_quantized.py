"""States that DiffQ has quantised, against what the reference restores with it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import demucs.hf
import demucs.states
import pytest
import torch
from torch import Tensor, nn

from demucs_lightning.pretrained import official, tensors
from demucs_lightning.pretrained.package import build
from tests.pretrained.conftest import (
    SMALL,
    official_file,
    official_package,
    reference_model,
    safetensors_file,
)

diffq = pytest.importorskip("diffq", reason="diffq is source, which needs a C compiler")

KINDS = list(SMALL)


def spread(quantizer: Any) -> Any:
    """Bits of every number, as training would leave them."""
    generator = torch.Generator().manual_seed(0)
    for each in quantizer._qparams:
        each.logit.data = 1.5 * torch.randn(each.logit.shape, generator=generator)
    return quantizer


QUANTIZERS: dict[str, Callable[[nn.Module], Any]] = {
    "each": lambda model: spread(diffq.DiffQuantizer(model, min_size=5e-4, max_bits=14)),
    "groups": lambda model: diffq.DiffQuantizer(model, min_size=1e-3, group_size=4, float16=True),
    "uniform": lambda model: diffq.UniformQuantizer(model, min_size=1e-3, bits=5),
    "biases": lambda model: diffq.UniformQuantizer(model, min_size=0, bits=9, exclude=["bias"]),
}


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_files_of_the_reference(kind: str, quantizer: str, tmp_path: Path, mixture: Tensor) -> None:
    model = reference_model(kind)
    original = {name: value.clone() for name, value in model.state_dict().items()}
    quantized = QUANTIZERS[quantizer](model)
    path = official_file(model, tmp_path, "abc", quantizer=quantized)
    other = safetensors_file(model, tmp_path, "abc", quantizer=quantized)
    expected = demucs.states.load_model(path).eval()
    assert any(not torch.equal(original[k], v) for k, v in expected.state_dict().items())
    again = demucs.hf.load_safetensors_model(other).state_dict()
    for package in (official.read(path), tensors.read(other)):
        assert list(package.state) == list(original)
        for name, value in expected.state_dict().items():
            assert torch.equal(again[name], value)
            assert torch.equal(package.state[name], value), name
        torch.testing.assert_close(build(package)(mixture), expected(mixture), rtol=0, atol=1e-5)


def test_the_other_packing(tmp_path: Path) -> None:
    model = reference_model("Demucs")
    package, quantizer = official_package(model), QUANTIZERS["each"](model)
    package["state"] = {**quantizer.get_quantized_state(torch_pack=True), "__quantized": True}
    torch.save(package, tmp_path / "a.th")
    expected = demucs.states.load_model(tmp_path / "a.th").state_dict()
    found = official.read(tmp_path / "a.th").state
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_without_diffq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = reference_model("Demucs")
    path = official_file(model, tmp_path, "abc", quantizer=QUANTIZERS["uniform"](model))
    plain = official_file(reference_model("Demucs"), tmp_path, "def")
    monkeypatch.setitem(sys.modules, "diffq", None)
    official.read(plain)
    with pytest.raises(
        ValueError, match=r"-\w+\.th is quantised.*\"demucs-lightning\[quantized\]\""
    ):
        official.read(path)


def put(*keys: Any, value: Any) -> Callable[[dict], None]:
    """Sets what stands at a path of keys, in lists and tuples too."""

    def change(content: Any, rest: tuple) -> Any:
        if not rest:
            return value(content) if callable(value) and not isinstance(value, type) else value
        copied = dict(content) if isinstance(content, dict) else list(content)
        inner = copied.get(rest[0]) if isinstance(copied, dict) else copied[rest[0]]
        copied[rest[0]] = change(inner, rest[1:])
        return tuple(copied) if isinstance(content, tuple) else copied

    return lambda state: state.update(change(state, keys))


META = {
    "class": (put("meta", "klass", value=nn.Linear), "not opened"),
    "other quantizer": (put("meta", "klass", value=diffq.LSQ), "not opened"),
    "no class": (put("meta", "klass", value=3), "is quantised by an unknown class"),
    "a model": (put("meta", "klass", value=None), "is quantised by an unknown class"),
    "nothing": (put("meta", value=None), "does not say how its weights are quantised"),
    "no arguments": (put("meta", "init_kwargs", value=[]), "does not say how its weights are"),
    "not packed": (put("meta", "packed", value=False), "its quantised weights are not packed"),
    "the other packing": (
        put("meta", "torch_pack", value=True),
        "its quantised weights do not fit",
    ),
}
FIT = "its quantised weights do not fit the model Demucs"
WRONG = {
    "unknown argument": put("meta", "init_kwargs", "color", value=1),
    "suffix": put("meta", "init_kwargs", "suffix", value=""),
    "size": put("meta", "init_kwargs", "min_size", value="x"),
    "group": put("meta", "init_kwargs", "group_size", value=0),
    "group of text": put("meta", "init_kwargs", "group_size", value="x"),
    "bits": put("meta", "init_kwargs", "min_bits", value=float("nan")),
    "more bits": put("meta", "init_kwargs", "min_bits", value=7.9),
    "one more": put("others", value=lambda v: [*v, v[0]]),
    "one less": put("others", value=lambda v: v[1:]),
    "shape": put("others", 0, value=torch.zeros(1)),
    "claim": put("others", 0, value=lambda v: torch.zeros(1).expand(v.shape)),
    "no tensor": put("others", 0, value=0.5),
    "no list": put("float16", value=3),
    "no levels": put("quantized", value=lambda v: v[1:]),
    "level type": put("quantized", 0, 0, 7, value=torch.zeros(1, 8, 32)),
    "level rows": put("quantized", 0, 0, 7, value=torch.zeros(1, 64, 32, dtype=torch.int64)),
    "level lanes": put("quantized", 0, 0, 7, value=torch.zeros(1, 8, 31, dtype=torch.int64)),
    "level blocks": put("quantized", 0, 0, 7, value=torch.zeros(2, 8, 32, dtype=torch.int64)),
    "level memory": put(
        "quantized", 0, 0, 7, value=torch.zeros(1, 1, 1, dtype=torch.int64).expand(1, 8, 32)
    ),
    "level gone": put("quantized", 0, 0, 7, value=None),
    "level more": put("quantized", 0, 0, 2, value=torch.zeros(1, 3, 32, dtype=torch.int64)),
    "level lists": put("quantized", 0, 0, value=lambda v: v[:5]),
    "scale": put("quantized", 0, 1, value=(0.0, float("inf"))),
    "scale type": put("quantized", 0, 1, value=(0.0, "x")),
    "scale count": put("quantized", 0, 1, value=(0.0,)),
    "bits of groups": put(
        "quantized", 0, 2, value=lambda v: torch.full((1, 4, 32), -1, dtype=torch.int64)
    ),
    "shorter": put("quantized", 0, value=lambda v: v[:2]),
}


def damaged(change: Callable[[dict], None], folder: Path) -> Path:
    model = reference_model("Demucs")
    quantizer = diffq.DiffQuantizer(model, min_size=1e-4, init_bits=8)
    content = official_package(model, quantizer=quantizer)
    assert content["state"]["quantized"][0][0][7] is not None
    change(content["state"])
    torch.save(content, folder / "a.th")
    return folder / "a.th"


@pytest.mark.parametrize("name", META)
def test_how_it_is_quantised(name: str, tmp_path: Path) -> None:
    change, message = META[name]
    with pytest.raises(ValueError, match=rf"a\.th [^\n]*{message}[^\n]*\.$"):
        official.read(damaged(change, tmp_path))


@pytest.mark.parametrize("name", WRONG)
def test_what_is_quantised(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"a\.th is damaged: {FIT} that it names\.$"):
        official.read(damaged(WRONG[name], tmp_path))


def test_a_quantised_file_makes_no_large_model(tmp_path: Path) -> None:
    model = reference_model("Demucs")
    content = official_package(model, quantizer=diffq.DiffQuantizer(model, min_size=1e-4))
    for change in (
        {"channels": 4 * 10**4},
        {"depth": 10**6, "dconv_mode": 0},
        {"lstm_layers": 10**6},
    ):
        changed = {**content, "kwargs": {**content["kwargs"], **change}}
        torch.save(changed, tmp_path / "a.th")
        with pytest.raises(ValueError, match=r"a\.th [^\n]*larger model than the one that"):
            official.read(tmp_path / "a.th")
