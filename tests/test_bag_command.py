"""Bags written by `demucs-lightning bag`: the real demucs loads them and separates alike."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import demucs.pretrained
import pytest
import torch
import yaml
from demucs.apply import BagOfModels, apply_model
from torch import Tensor

from demucs_lightning import pretrained
from demucs_lightning.commands import bag, export
from demucs_lightning.separation import separate

RATE = 8000
SOURCES = ["bass", "rest"]
SMALL: dict[str, dict[str, Any]] = {
    "Demucs": {"channels": 4, "depth": 2, "segment": 1.0},
    "HDemucs": {"channels": 4, "nfft": 256, "depth": 4, "segment": 1.0},
}


def write_checkpoint(path: Path, klass: str = "Demucs", *, seed: int = 0, **changes: Any) -> str:
    """A checkpoint of a small model with random weights."""
    torch.manual_seed(seed)
    kwargs = {"sources": SOURCES, "samplerate": RATE, **SMALL[klass], **changes}
    state = pretrained.CLASSES[klass](**kwargs).state_dict()
    checkpoint = {
        "state_dict": {f"model.{name}": value for name, value in state.items()},
        pretrained.KEY: {"klass": klass, "kwargs": kwargs},
    }
    torch.save(checkpoint, path)
    return str(path)


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[str]:
    made = [("a", "Demucs", 0), ("b", "HDemucs", 1), ("c", "Demucs", 2)]
    return [write_checkpoint(tmp_path / f"{n}.ckpt", k, seed=seed) for n, k, seed in made]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "repo"


Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], folder: Path) -> Refused:
    """Runs the command, which must fail with one sentence, and returns that."""

    def run(*argv: str, name: str = "mine") -> str:
        with pytest.raises(SystemExit) as caught:
            bag.main([name, "--repo", str(folder), *argv])
        assert caught.value.code == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        return lines[0]

    return run


def written(folder: Path, *argv: str) -> dict[str, Any]:
    bag.main(["mine", "--repo", str(folder), *argv])
    return yaml.safe_load((folder / "mine.yaml").read_text())


def separations(folder: Path) -> tuple[Tensor, Tensor]:
    """The same noise, separated by demucs and by us."""
    mixture = torch.randn(1, 2, int(2.6 * RATE), generator=torch.Generator().manual_seed(0))
    theirs = demucs.pretrained.get_model("mine", repo=folder)
    assert isinstance(theirs, BagOfModels)
    expected = apply_model(theirs, mixture, shifts=0, overlap=0.25)
    assert isinstance(expected, Tensor)
    ours: Any = pretrained.load_model("mine", repo=folder)
    return expected, separate(ours, mixture, overlap=0.25)


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < tolerance * expected.abs().max()


def test_a_bag_of_specialists(
    checkpoints: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
):
    a, b, _ = checkpoints
    content = written(folder, f"rest={a}", f"bass={b}", "--float32")
    assert list(content) == ["models", "weights"]
    assert content["weights"] == [[0, 1], [1, 0]]
    files = sorted(folder.glob("*.th"))
    assert sorted(content["models"]) == [file.stem.split("-")[0] for file in files]
    assert all(len(part) == 8 for file in files for part in file.stem.split("-"))
    assert f"{folder / 'mine.yaml'} and 2 models (" in capsys.readouterr().out

    expected, found = separations(folder)
    assert_close(found, expected)
    mixture = torch.randn(1, 2, int(2.6 * RATE), generator=torch.Generator().manual_seed(0))
    alone: list[Any] = [pretrained.load_model(path) for path in (b, a)]
    parts = [separate(model, mixture)[:, index] for index, model in enumerate(alone)]
    assert_close(found, torch.stack(parts, dim=1))


def test_one_model_may_serve_several_sources_and_one_source_have_several(
    checkpoints: list[str], folder: Path
):
    a, b, c = checkpoints
    content = written(folder, f"bass={a}", f"rest={b}", f"rest={c}", f"rest={a}")
    assert content["weights"] == [[1, 1], [0, 1], [0, 1]]
    expected, found = separations(folder)
    assert_close(found, expected)


def test_a_mean_of_models_at_a_segment(checkpoints: list[str], folder: Path):
    content = written(folder, *checkpoints, "--segment", "0.7")
    assert content.keys() == {"models", "segment"}
    assert content["segment"] == 0.7
    assert len(content["models"]) == 3
    assert len(list(folder.glob("*.th"))) == 3
    expected, found = separations(folder)
    assert_close(found, expected)


def test_members_come_from_any_file_and_a_path_may_have_an_equals_sign(
    checkpoints: list[str], folder: Path, tmp_path: Path
):
    a, b, _ = checkpoints
    odd = tmp_path / "lr=0.1"
    export.main([a, str(odd / "x.th")])
    export.main([b, str(tmp_path / "y.safetensors")])
    content = written(folder, str(odd / "x.th"), str(tmp_path / "y.safetensors"))
    assert "weights" not in content
    content = written(
        folder, f"bass={odd / 'x.th'}", f"rest={tmp_path / 'y.safetensors'}", "--overwrite"
    )
    assert content["weights"] == [[1, 0], [0, 1]]
    assert len(list(folder.glob("*.th"))) == 2  # the same models, under the same names


def test_a_signature_that_looks_like_a_number_stays_text():
    text = bag.bag_yaml(["12345678", "1234e567"], [[1.0], [0.5]], 44.0)
    expected = {"models": ["12345678", "1234e567"], "weights": [[1.0], [0.5]], "segment": 44}
    assert yaml.safe_load(text) == expected


def test_an_existing_bag_is_replaced_only_when_asked(
    checkpoints: list[str], folder: Path, refused: Refused
):
    before = written(folder, checkpoints[0])
    assert f"{folder / 'mine.yaml'} exists: add --overwrite" in refused(checkpoints[1])
    assert yaml.safe_load((folder / "mine.yaml").read_text()) == before
    assert written(folder, checkpoints[1], "--overwrite") != before


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (["bass={a}"], "No model is given for rest: each source needs one, as in rest=MODEL."),
        (["bass={a}", "rest={b}", "drums={c}"], "no source 'drums': the models have bass, rest."),
        (["bass={a}", "{b}"], "some without: give all or none"),
        (["{a}", "{a}"], "a.ckpt is given more than once."),
        (["bass=", "rest={b}"], "'bass=' is not SOURCE=MODEL"),
        (["bass={a}", "rest=nothing.ckpt"], "nothing.ckpt does not exist"),
        (["{a}", "--segment", "0"], "--segment is 0.0: it must be a number of seconds above 0."),
        (["{a}", "--segment", "nan"], "--segment is nan: it must be"),
    ],
)
def test_a_mistake_is_one_sentence(
    members: list[str], said: str, checkpoints: list[str], folder: Path, refused: Refused
):
    paths = dict(zip("abc", checkpoints, strict=True))
    assert said in refused(*(member.format(**paths) for member in members))
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sources": ["rest", "bass"]}, "their sources are ['bass', 'rest'] and ['rest', 'bass']."),
        ({"samplerate": 16000}, "their samplerate are 8000 and 16000."),
        ({"audio_channels": 1}, "their audio_channels are 2 and 1."),
    ],
)
def test_models_that_disagree_are_named(
    changes: dict[str, Any], said: str, checkpoints: list[str], tmp_path: Path, refused: Refused
):
    other = write_checkpoint(tmp_path / "other.ckpt", **changes)
    assert f"{checkpoints[0]} and {other} can't be in one bag: {said}" in refused(
        checkpoints[0], other
    )


@pytest.mark.parametrize("name", ["", "../mine", ".mine", "a b"])
def test_a_name_must_be_one_of_a_file(name: str, checkpoints: list[str], refused: Refused):
    assert "can't name a bag" in refused(checkpoints[0], name=name)


def test_a_name_that_a_model_has_is_refused(checkpoints: list[str], folder: Path, refused: Refused):
    export.main([checkpoints[0], str(folder / "mine.th"), "--checksum"])
    assert "has the name 'mine' already" in refused(checkpoints[1])


def test_a_bag_is_no_member(checkpoints: list[str], folder: Path, refused: Refused):
    signatures = written(folder, *checkpoints)["models"]
    said = refused(str(folder / "mine.yaml"), name="other")
    members = " · ".join(f"{signature} (bass, rest)" for signature in signatures)
    assert f"mine is a bag of 3 models, and one is wanted: name one of {members}." in said


def test_of_a_bag_of_specialists_the_one_that_serves_the_source_is_taken(
    checkpoints: list[str], folder: Path
):
    a, b, c = checkpoints
    first = written(folder, f"bass={a}", f"rest={b}")["models"]
    bag.main(["more", "--repo", str(folder), f"bass={folder / 'mine.yaml'}", f"rest={c}"])
    more = yaml.safe_load((folder / "more.yaml").read_text())
    assert more["models"][0] == first[0]
    assert more["weights"] == [[1, 0], [0, 1]]
    bag.main(["again", "--repo", str(folder), *(f"{s}={folder / 'mine.yaml'}" for s in SOURCES)])
    again = yaml.safe_load((folder / "again.yaml").read_text())
    assert (again["models"], again["weights"]) == (first, [[1, 0], [0, 1]])


def test_a_disk_that_fills_up_leaves_no_bag(
    checkpoints: list[str], folder: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
):
    done: list[int] = []

    def full_at_the_second(handle: int) -> None:
        done.append(handle)
        if len(done) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_at_the_second)
    said = refused(*checkpoints)
    assert f"No space left on device: {folder}" in said
    assert [path.suffix for path in folder.iterdir()] == [".th"]
