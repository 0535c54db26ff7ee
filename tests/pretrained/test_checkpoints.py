"""Checkpoints to models; files that are missing, damaged, hostile or of something else."""

import errno
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from demucs_lightning import pretrained
from demucs_lightning.callbacks import AtomicIO, Checkpoints
from demucs_lightning.models import Demucs, HDemucs

KWARGS = {"sources": ["a", "b"], "channels": 4, "depth": 2, "resample": False, "segment": 8}
DESCRIPTION = {"klass": "Demucs", "kwargs": KWARGS}


@pytest.fixture
def model() -> Demucs:
    torch.manual_seed(0)
    return Demucs(**KWARGS)


@pytest.fixture
def checkpoint(model: Demucs) -> dict[str, Any]:
    average = {name: value + 1 for name, value in model.state_dict().items()}
    return {
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
        "demucs_lightning": {
            **DESCRIPTION,
            "kwargs": dict(KWARGS),
            "candidate": "weights",
            "emas": {"ema_batch_0.9": {"state": average, "count": 3.0}},
        },
    }


def write(checkpoint: Any, folder: Path) -> Path:
    torch.save(checkpoint, folder / "a.ckpt")
    return folder / "a.ckpt"


def test_a_checkpoint_gives_back_its_model(
    checkpoint: dict[str, Any], model: Demucs, tmp_path: Path
) -> None:
    loaded = pretrained.load_model(write(checkpoint, tmp_path))
    assert isinstance(loaded, Demucs)
    assert not loaded.training
    mixture = torch.randn(1, 2, 1000)
    assert torch.equal(loaded(mixture), model.eval()(mixture))


def test_the_best_candidate_is_taken(
    checkpoint: dict[str, Any], model: Demucs, tmp_path: Path
) -> None:
    checkpoint["demucs_lightning"]["candidate"] = "ema_batch_0.9"
    loaded = pretrained.load_model(write(checkpoint, tmp_path))
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name] + 1)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.ckpt does not exist"):
        pretrained.load_model(tmp_path / "nothing.ckpt")


class Hostile:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_file_is_not_executed(
    checkpoint: dict[str, Any], tmp_path: Path, zipped: bool
) -> None:
    victim, path = tmp_path / "victim", tmp_path / "hostile.ckpt"
    if zipped:
        torch.save({**checkpoint, "extra": Hostile(victim)}, path)
    else:
        path.write_bytes(pickle.dumps(Hostile(victim)))
    with pytest.raises(ValueError, match=r"hostile\.ckpt is damaged.* or holds more than plain"):
        pretrained.read_checkpoint(path)
    assert not victim.exists()


@pytest.mark.parametrize("keep", [0, 10, 500, -100])
def test_a_damaged_file(checkpoint: dict[str, Any], tmp_path: Path, keep: int) -> None:
    path = write(checkpoint, tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"a\.ckpt is damaged"):
        pretrained.read_checkpoint(path)


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], {"demucs_lightning": {}}])
def test_a_file_of_something_else(content: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a checkpoint of this project"):
        pretrained.read_checkpoint(write(content, tmp_path))


def test_a_class_that_is_not_in_the_table(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    checkpoint["demucs_lightning"]["klass"] = "os.system"
    with pytest.raises(
        ValueError, match=r"os\.system; those that can be built are Demucs, HDemucs"
    ):
        pretrained.load_model(write(checkpoint, tmp_path))


@pytest.mark.parametrize("change", [{"channels": 8}, {"unknown": 1}])
def test_a_file_that_contradicts_itself(
    checkpoint: dict[str, Any], tmp_path: Path, change: dict[str, Any]
) -> None:
    checkpoint["demucs_lightning"]["kwargs"] = {**KWARGS, **change}
    with pytest.raises(
        ValueError, match="does not fit the model Demucs that|is no argument of Demucs"
    ):
        pretrained.load_model(write(checkpoint, tmp_path))


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file["demucs_lightning"].pop("kwargs"),
        lambda file: file["demucs_lightning"].pop("klass"),
        lambda file: file["demucs_lightning"].update(klass=3),
        lambda file: file["demucs_lightning"].update(emas=[1]),
        lambda file: file["demucs_lightning"].update(candidate="ema_batch_0.1"),
        lambda file: file["demucs_lightning"]["emas"]["ema_batch_0.9"].pop("state"),
        lambda file: file["demucs_lightning"]["kwargs"].pop("sources"),
        lambda file: file["demucs_lightning"]["kwargs"].update(channels=-1),
        lambda file: file.update(state_dict=None),
        lambda file: file["state_dict"].update({"model.extra": torch.zeros(1)}),
        lambda file: file["state_dict"].popitem(),
        lambda file: file["demucs_lightning"]["emas"]["ema_batch_0.9"]["state"].update(
            {"encoder.0.0.bias": torch.zeros(99)}
        ),
    ],
)
def test_a_file_with_a_part_missing_or_wrong(
    checkpoint: dict[str, Any], tmp_path: Path, damage: Any
) -> None:
    damage(checkpoint)
    with pytest.raises(ValueError, match=r"a\.ckpt is damaged: "):
        pretrained.load_model(write(checkpoint, tmp_path))


@pytest.mark.parametrize("missing", ["loops", "position"])
def test_training_goes_on_only_from_a_whole_file(checkpoint: dict[str, Any], missing: str) -> None:
    checkpoint |= dict.fromkeys(pretrained.RESUMED, 0)
    checkpoint["demucs_lightning"]["position"] = [0, 1]
    pretrained.check_resumable("a.ckpt", checkpoint)
    checkpoint.pop(missing, None)
    checkpoint["demucs_lightning"].pop(missing, None)
    with pytest.raises(ValueError, match=rf"a\.ckpt is damaged: it does not have {missing}"):
        pretrained.check_resumable("a.ckpt", checkpoint)


def test_flipped_bits_are_noticed(
    checkpoint: dict[str, Any], model: Demucs, tmp_path: Path
) -> None:
    path = write(checkpoint, tmp_path)
    content = bytearray(path.read_bytes())
    weight = next(iter(model.state_dict().values())).numpy().tobytes()
    content[content.index(weight)] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.ckpt is damaged: the checksum"):
        pretrained.read_checkpoint(path)


def test_torch_does_not_warn_of_what_is_refused(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "hostile.ckpt"
    path.write_bytes(pickle.dumps(Hostile(tmp_path / "victim"), protocol=4))
    with pytest.raises(ValueError, match="is damaged"):
        pretrained.read_checkpoint(path)
    assert not recwarn.list


class FullDisk:
    """A file whose disk is full when it is closed."""

    def write(self, data: bytes) -> int:
        return len(data)

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __enter__(self) -> "FullDisk":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()


def test_a_full_disk_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Path, "open", lambda *_: FullDisk())
    path = str(tmp_path / "last.ckpt")
    with pytest.raises(OSError, match="No space left on device") as caught:
        AtomicIO().save_checkpoint({"v": 1}, path)
    assert caught.value.filename == path
    trainer: Any = SimpleNamespace(
        world_size=1, save_checkpoint=lambda path: AtomicIO().save_checkpoint({}, path)
    )
    lit = SimpleNamespace(position=(0, 1), state_dict=dict)
    keeper = Checkpoints(tmp_path)
    keeper.saved = (0, 0)
    keeper.on_exception(trainer, lit, caught.value)
    assert not caplog.records
    keeper.on_exception(trainer, lit, RuntimeError("something else"))
    assert [record.exc_info for record in caplog.records] == [None]
    assert caplog.messages == [f"{path} was not written: No space left on device"]


def test_another_architecture_is_named(checkpoint: dict[str, Any]) -> None:
    def check(klass: str = "Demucs", **changes: Any) -> None:
        wanted = {"klass": klass, "kwargs": {**KWARGS, **changes}}
        pretrained.check_same_model("a.ckpt", checkpoint, wanted)

    check()
    check(segment=3)  # does not change the weights
    with pytest.raises(
        ValueError, match="holds the model Demucs, but the settings ask for HDemucs"
    ):
        check("HDemucs")
    with pytest.raises(ValueError, match=r"another architecture: channels=4 \(settings: 8\)\.$"):
        check(channels=8)
    with pytest.raises(ValueError, match=r"lstm_layers=None \(settings: 2\)"):
        check(lstm_layers=2)


def test_names_of_classes() -> None:
    assert pretrained.describe("demucs_lightning.models.HDemucs", {})["klass"] == "HDemucs"
    assert pretrained.describe("mine.HDemucs", {})["klass"] == "mine.HDemucs"
    assert all(pretrained.CLASSES[klass.__name__] is klass for klass in (Demucs, HDemucs))
