"""Official packages that want more than to be read: each is refused in one sentence, and what it
asks for does not happen."""

import builtins
import functools
import os
import shutil
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from demucs.hdemucs import HDemucs as ReferenceHDemucs
from torch._tensor import _rebuild_from_type_v2
from torch._utils import _rebuild_tensor_v2

from demucs_lightning.pretrained import official
from demucs_lightning.pretrained.package import build, check_fits
from tests.pretrained.conftest import RAW, Raw, official_package, reference_model


def save(content: Any, path: Path) -> Path:
    torch.save(content, path, pickle_module=RAW)
    return path


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


class Restores:
    """Acts when its state is set."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __setstate__(self, state: Any) -> None:
        state["canary"].touch()


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "os.system": lambda canary: Calls(os.system, f"touch {canary}"),
    "eval": lambda canary: Calls(builtins.eval, f"open({str(canary)!r}, 'w')"),
    "exec": lambda canary: Calls(builtins.exec, f"open({str(canary)!r}, 'w')"),
    "open": lambda canary: Calls(builtins.open, str(canary), "w"),
    "setstate": Restores,
    "method": lambda canary: Calls(Path.touch, canary),
    "getattr": lambda canary: Calls(builtins.getattr, canary, "touch"),
    "copy": lambda canary: Calls(shutil.copyfile, __file__, str(canary)),
    "torch.save": lambda canary: Calls(torch.save, {}, str(canary)),
    "torch.load": lambda canary: Calls(torch.load, str(canary)),
    "torch.hub": lambda canary: Calls(torch.hub.load, str(canary), "x"),
    "torch.storage": lambda _: Calls(torch.storage._load_from_bytes, b""),
    "rebuild": lambda canary: Calls(_rebuild_from_type_v2, Path.touch, Path, (canary,), {}),
    "partial": lambda canary: Calls(functools.partial, canary.touch),
    "other model": lambda _: Calls(torch.nn.Linear, 1, 1),
    # What is allowed, but not so.
    "model called": lambda _: Calls(ReferenceHDemucs, ["a"]),
    "model made": lambda _: reference_model("HDemucs"),
    "name built": lambda _: Raw(b"cdemucs.hdemucs\nHDemucs\n}" + text("path") + text("os") + b"sb"),
    "fraction of zero": lambda _: Raw(b"cfractions\nFraction\nK\x01K\x00\x86R"),
    "fraction of text": lambda _: Raw(b"cfractions\nFraction\n" + text("1e999999999") + b"\x85R"),
    "fraction called": lambda _: Raw(b"cfractions\nFraction\n)\x81"),
    "number of text": lambda _: Raw(b"cnumpy.core.multiarray\nscalar\n" + text("O") * 2 + b"\x86R"),
    "object type": lambda _: Raw(b"cnumpy\ndtype\n" + text("O8") + b"\x85R"),
    "bytes without end": lambda _: Raw(
        b"cbuiltins\nbytearray\n\x8a\x07" + b"\xff" * 6 + b"\x3f\x85R"
    ),
    "depth": lambda _: Raw(b"N" + b"\x85" * 100_000),
    "laughs": lambda _: laughs(),
}


def laughs() -> list:
    nested: list = ["ha"] * 10
    for _ in range(12):
        nested = [nested] * 10
    return nested


@pytest.mark.parametrize("place", ["klass", "state", "training_args", "nested"])
@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_file_is_refused(attack: str, place: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    hostile, content = HOSTILE[attack](canary), official_package(reference_model("Demucs"))
    if place == "nested":
        content["kwargs"]["sources"] = ["a", ("b", {"c": hostile})]
    else:
        content[place] = hostile
    torch.save(content, tmp_path / "a.th", pickle_module=RAW)
    with pytest.raises(ValueError, match=r"^\S*a\.th is damaged[^\n]*\.$") as caught:
        official.read(tmp_path / "a.th")
    assert len(str(caught.value)) < 300
    assert not canary.exists()


def test_what_is_refused_is_named(tmp_path: Path) -> None:
    path = save({"klass": torch.nn.Linear}, tmp_path / "a.th")
    with pytest.raises(ValueError, match=r"plain data \(torch\.nn\.modules\.linear\.Linear\)"):
        official.read(path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of kinds of tensors that torch gives up
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(1).expand(10**6, 10**6),
        lambda: torch.zeros(10**12, device="meta"),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.zeros(3, dtype=torch.int64),
        lambda: torch.zeros(3, dtype=torch.complex64),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
        lambda: {"inner": torch.zeros(1)},
        lambda: 3,
    ],
)
def test_weights_that_are_none(make: Callable, tmp_path: Path) -> None:
    content = official_package(reference_model("Demucs"))
    content["state"]["encoder.0.0.bias"] = make()
    with pytest.raises(ValueError, match=r"a\.th is damaged[^\n]*\.$"):
        official.read(save(content, tmp_path / "a.th"))


@pytest.mark.parametrize(
    ("size", "stride"), [((10**12,), (1,)), ((2**62, 2**62), (1, 1)), ((2,), (2**62,))]
)
def test_weights_beyond_their_memory(size: tuple, stride: tuple, tmp_path: Path) -> None:
    content = official_package(reference_model("Demucs"))
    storage = torch.zeros(4)._typed_storage()
    content["state"]["encoder.0.0.bias"] = Calls(
        _rebuild_tensor_v2, storage, 0, size, stride, False, OrderedDict()
    )
    with pytest.raises(ValueError, match=r"a\.th is damaged[^\n]*\.$"):
        official.read(save(content, tmp_path / "a.th"))


def test_no_argument_asks_for_more_than_the_file_has() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.pretrained.bombs"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    seconds, slowest, memory = done.stdout.splitlines()
    assert float(seconds) < 3, slowest
    assert float(memory) < 1000


@pytest.mark.parametrize(
    "change",
    [{"t_layers": 10**6}, {"depth": 10**6}, {"channels": 10**5}, {"dconv_depth": -(10**6)}],
)
def test_a_small_file_makes_no_large_model(change: dict[str, int], tmp_path: Path) -> None:
    content = official_package(reference_model("HTDemucs"))
    content["kwargs"] |= change
    path = save(content, tmp_path / "a.th")
    start = time.process_time()
    for look in (build, check_fits):
        with pytest.raises(ValueError, match=r"a\.th [^\n]*\.$"):
            look(official.read(path))
    assert time.process_time() - start < 10


def test_weights_that_share_memory_count_once(tmp_path: Path) -> None:
    content = official_package(reference_model("HTDemucs"))
    one = torch.zeros(10**6, dtype=torch.float16)
    content["state"] |= {f"layer{index}": one for index in range(1000)}
    content["kwargs"] |= {"channels": 1000}
    with pytest.raises(ValueError, match="makes a larger model than the one that its weights"):
        build(official.read(save(content, tmp_path / "a.th")))
