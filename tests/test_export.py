"""Models written by `demucs-lightning export`: the real demucs separates with them alike."""

import errno
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import demucs.hf
import demucs.pretrained
import onnxruntime
import pytest
import soundfile
import torch
from demucs.apply import apply_model
from torch import Tensor

from demucs_lightning import pretrained
from demucs_lightning.commands import export
from demucs_lightning.separation import separate

RATE = 8000
FOUR = ["drums", "bass", "other", "vocals"]
SMALL: dict[str, dict[str, Any]] = {
    "Demucs": {"channels": 4, "depth": 2, "segment": 1},
    "HDemucs": {"channels": 4, "nfft": 256, "depth": 4, "segment": 1},
    "HTDemucs": {
        **{"channels": 4, "nfft": 256, "depth": 2, "t_layers": 2, "t_heads": 2},
        **{"dconv_comp": 2, "segment": Fraction(10_001, RATE)},
    },
}


def write_checkpoint(path: Path, klass: str = "HDemucs", *, seed: int = 0, **changes: Any) -> Path:
    """A checkpoint of a small model with random weights."""
    torch.manual_seed(seed)
    kwargs = {"sources": FOUR, "samplerate": RATE, **SMALL[klass], **changes}
    state = pretrained.CLASSES[klass](**kwargs).state_dict()
    segment = float(kwargs["segment"])  # as training writes it
    checkpoint = {
        "state_dict": {f"model.{name}": value for name, value in state.items()},
        pretrained.KEY: {"klass": klass, "kwargs": {**kwargs, "segment": segment}},
    }
    torch.save(checkpoint, path)
    return path


def noise(seconds: float = 2.6) -> Tensor:
    return torch.randn(1, 2, int(seconds * RATE), generator=torch.Generator().manual_seed(0))


def separated(path: Path, mixture: Tensor) -> Tensor:
    model: Any = pretrained.load_model(path)
    return separate(model, mixture, overlap=0.25)


def difference(found: Any, expected: Tensor) -> float:
    assert tuple(found.shape) == tuple(expected.shape)
    return (torch.as_tensor(found) - expected).abs().max().item() / expected.abs().max().item()


Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs the command, which must fail with one sentence, and returns that."""

    def run(*argv: object) -> str:
        with pytest.raises(SystemExit) as caught:
            export.main([str(each) for each in argv])
        assert caught.value.code == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        return lines[0]

    return run


@pytest.mark.parametrize("klass", SMALL)
@pytest.mark.parametrize("flags", [["--float32"], []])
def test_demucs_separates_with_an_exported_model_as_we_do(
    klass: str, flags: list[str], tmp_path: Path
):
    checkpoint = write_checkpoint(tmp_path / "best.ckpt", klass)
    out = tmp_path / "repo" / "mine.th"
    export.main([str(checkpoint), str(out), *flags])

    theirs = demucs.pretrained.get_model("mine", repo=out.parent)
    mixture = noise()
    expected = apply_model(theirs, mixture, shifts=0, overlap=0.25)
    assert isinstance(expected, Tensor)
    assert difference(separated(checkpoint if flags else out, mixture), expected) < 1e-5
    exact = difference(separated(checkpoint, mixture), expected)
    assert (exact < 1e-5) == bool(flags)
    assert exact < 1e-2


@pytest.mark.parametrize("klass", SMALL)
def test_demucs_reads_an_exported_safetensors_file(klass: str, tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path / "best.ckpt", klass)
    export.main([str(checkpoint), str(tmp_path / "mine.safetensors"), "--float32"])
    theirs = demucs.hf.load_safetensors_model(tmp_path / "mine.safetensors").eval()
    mixture = noise()
    expected = apply_model(theirs, mixture, shifts=0, overlap=0.25)
    assert isinstance(expected, Tensor)
    assert difference(separated(checkpoint, mixture), expected) < 1e-5


def test_the_command_of_demucs_separates_a_file_with_it(tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path / "best.ckpt", "Demucs")
    export.main([str(checkpoint), str(tmp_path / "mine.th"), "--checksum"])
    mixture = noise() / 10
    soundfile.write(tmp_path / "song.wav", mixture[0].T.numpy(), RATE, subtype="FLOAT")
    options = ["--float32", "--clip-mode", "none", "--shifts", "0", "-d", "cpu"]
    command = ["--repo", ".", "-n", "mine", "song.wav", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "demucs", *command],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
    )
    (exported,) = tmp_path.glob("mine-*.th")
    std, mean = mixture.mean(1).std() + 1e-8, mixture.mean(1).mean()
    ours = separated(exported, (mixture - mean) / std) * std + mean
    for name, stem in zip(FOUR, ours[0], strict=True):
        theirs, _ = soundfile.read(tmp_path / "separated" / "mine" / "song" / f"{name}.wav")
        assert difference(theirs.T, stem) < 1e-5


def test_an_onnx_file_holds_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    checkpoint = write_checkpoint(tmp_path / "best.ckpt", "Demucs")
    export.main([str(checkpoint), str(tmp_path / "mine.onnx"), "--segment", "0.5"])
    model: Any = pretrained.load_model(checkpoint)
    length = model.valid_length(RATE // 2)
    captured = capsys.readouterr()
    assert f"fp32): chunks of {length} samples" in captured.out
    shown = re.search(r'python -c "(.*)"', captured.out)
    assert shown
    exec(shown[1])
    assert "def separate(path, mixture):" in capsys.readouterr().out
    assert captured.err == ""
    mixture = noise()[..., :length]
    session = onnxruntime.InferenceSession(tmp_path / "mine.onnx")
    found = session.run(None, {"mixture": mixture.numpy()})[0]
    with torch.no_grad():
        assert difference(found, model(mixture)) < 1e-4


def test_a_checksum_in_the_name_is_that_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    checkpoint = write_checkpoint(tmp_path / "best.ckpt")
    export.main([str(checkpoint), str(tmp_path / "my-model.th"), "--checksum"])
    (out,) = tmp_path.glob("*.th")
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    assert out.name == f"my-model-{digest[:8]}.th"
    said = capsys.readouterr().out
    assert said.startswith(f"{out} (")
    assert f"fp16): demucs --repo {tmp_path} -n my-model SONG" in said
    assert demucs.pretrained.get_model("my-model", repo=tmp_path).sources == FOUR
    assert sorted(tmp_path.iterdir()) == sorted([checkpoint, out])


def test_a_file_is_replaced_only_when_asked_and_then_with_others_of_its_name(
    tmp_path: Path, refused: Refused
):
    checkpoint, out = write_checkpoint(tmp_path / "best.ckpt"), tmp_path / "mine.th"
    out.write_bytes(b"former")
    assert f"{out} exists: add --overwrite" in refused(checkpoint, out)
    assert f"{out} exists: add --overwrite" in refused(checkpoint, out, "--checksum")
    assert out.read_bytes() == b"former"
    export.main([str(checkpoint), str(out), "--checksum", "--overwrite"])
    assert not out.exists()
    (signed,) = tmp_path.glob("mine-*.th")
    assert f"{signed} exists" in refused(checkpoint, out)
    export.main([str(checkpoint), str(out), "--overwrite"])
    assert [path.name for path in tmp_path.glob("*.th")] == ["mine.th"]


def test_a_file_can_be_written_over_the_one_it_comes_from(tmp_path: Path):
    checkpoint, out = write_checkpoint(tmp_path / "best.ckpt"), tmp_path / "mine.th"
    export.main([str(checkpoint), str(out), "--float32"])
    before = pretrained.load_model(out).state_dict()
    export.main([str(out), str(out), "--overwrite"])
    after = pretrained.load_model(out).state_dict()
    assert all(torch.equal(before[name].half().float(), value) for name, value in after.items())


def test_a_bag_is_refused_with_the_names_of_its_members(tmp_path: Path, refused: Refused):
    for seed, name in enumerate(("one", "two")):
        checkpoint = write_checkpoint(tmp_path / "best.ckpt", seed=seed)
        export.main([str(checkpoint), str(tmp_path / f"{name}.th"), "--checksum"])
    (tmp_path / "both.yaml").write_text("models: [one, two]\n")
    said = refused("both", tmp_path / "out.th", "--repo", tmp_path)
    members = " · ".join(f"{name} ({', '.join(FOUR)})" for name in ("one", "two"))
    assert f"both is a bag of 2 models, and one is wanted: name one of {members}." in said
    export.main(["two", str(tmp_path / "out.safetensors"), "--repo", str(tmp_path)])
    assert (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("out", "flags", "said"),
    [
        ("mine.pt", [], "mine.pt can't be written: its name must end in .th, .safetensors, .onnx."),
        ("mine.th", ["--segment", "3"], "--segment is for .onnx"),
        ("mine.onnx", ["--checksum"], "--checksum is for .th"),
        ("my-model.th", [], "takes what follows it for a checksum"),
        ("mine.onnx", ["--segment", "0"], "segment is 0.0: it must be a number of seconds"),
        ("folder.onnx", [], "folder.onnx is a folder"),
        ("best.ckpt/mine.th", [], "best.ckpt"),
    ],
)
def test_a_mistake_is_one_sentence(
    out: str, flags: list[str], said: str, tmp_path: Path, refused: Refused
):
    checkpoint = write_checkpoint(tmp_path / "best.ckpt")
    (tmp_path / "folder.onnx").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert said in refused(checkpoint, tmp_path / out, *flags)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_folder_is_tried_before_the_checkpoint_is_read(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
):
    def refuse(**_: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", "a name of its own")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    said = refused("no checkpoint", tmp_path / "mine.th")
    assert f"{tmp_path} can't be written to: Permission denied." in said


def test_a_full_disk_is_told_before_writing(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
):
    checkpoint = write_checkpoint(tmp_path / "best.ckpt")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    assert "10 bytes free" in refused(checkpoint, tmp_path / "mine.th")
    assert list(tmp_path.iterdir()) == [checkpoint]


@pytest.mark.parametrize("name", ["mine.th", "mine.safetensors", "mine.onnx"])
@pytest.mark.parametrize("flags", [[], ["--checksum"]])
def test_a_disk_that_fills_up_leaves_nothing_behind(
    name: str, flags: list[str], tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
):
    if flags and name != "mine.th":
        return
    checkpoint = write_checkpoint(tmp_path / "best.ckpt", "Demucs")

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    said = refused(checkpoint, tmp_path / name, *flags)
    assert said == f"error: No space left on device: {tmp_path / name}"
    assert list(tmp_path.iterdir()) == [checkpoint]
