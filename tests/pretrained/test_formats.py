"""Files by the ends of their names, and the way of a model through all of them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from demucs_lightning.pretrained import formats
from demucs_lightning.pretrained.package import CLASSES, build
from tests.pretrained.conftest import SMALL, official_file, reference_model


@pytest.mark.parametrize("kind", SMALL)
def test_a_checkpoint_becomes_either_kind(kind: str, tmp_path: Path, mixture: Tensor) -> None:
    kwargs = {**SMALL[kind][1], "sources": ["a", "b"], "samplerate": 8000}
    torch.manual_seed(0)
    model = CLASSES[kind](**kwargs).eval()
    checkpoint = {
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
        "demucs_lightning": {"klass": kind, "kwargs": {**kwargs, "segment": 1.25}},
    }
    torch.save(checkpoint, tmp_path / "a.ckpt")
    package = formats.read(tmp_path / "a.ckpt")
    for name in ("b.th", "b.safetensors", "C.TH"):
        formats.write(package, tmp_path / name, half=False)
        found = formats.read(str(tmp_path / name))
        assert (found.klass, found.origin) == (kind, str(tmp_path / name))
        assert found.kwargs.items() >= package.kwargs.items()
        assert torch.equal(build(found)(mixture), build(package)(mixture))
    formats.write(package, tmp_path / "half.th")
    assert {value.dtype for value in formats.read(tmp_path / "half.th").state.values()} == {
        torch.float16
    }


@pytest.mark.parametrize("name", ["a.pt", "a", "a.th.zip"])
def test_other_names(name: str, tmp_path: Path) -> None:
    package = formats.read(official_file(reference_model("Demucs"), tmp_path, "abc"))
    with pytest.raises(ValueError, match=r"read: its name must end in \.ckpt, \.th or \.safe"):
        formats.read(tmp_path / name)
    with pytest.raises(ValueError, match=r"written: its name must end in \.th or \.safetensors"):
        formats.write(package, tmp_path / name)
    with pytest.raises(ValueError, match=r"a\.ckpt can't be written"):
        formats.write(package, tmp_path / "a.ckpt")


@pytest.mark.parametrize("name", ["a.th", "a.safetensors"])
def test_a_full_disk_leaves_what_was_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = formats.read(official_file(reference_model("Demucs"), tmp_path, "abc"))
    (tmp_path / name).write_bytes(b"former")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        formats.write(package, tmp_path / name)
    assert caught.value.filename == str(tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"former"
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(OSError, match="directory|exists"):
        formats.write(package, tmp_path / name / "b.th")
