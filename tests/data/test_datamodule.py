"""From files to batches: what a batch holds, and how tracks are shared between processes."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
import torch

from demucs_lightning import scores
from demucs_lightning.data import FolderTracks, MusdbHQ
from demucs_lightning.data.datamodule import SeparationData
from demucs_lightning.data.loader import TrackLoader

SOURCES = ("drums", "bass", "other", "vocals")


def make(root: Path, **changes: Any) -> SeparationData:
    dset = partial(MusdbHQ, root, sources=SOURCES, shift=1.0, samplerate=8000)
    settings = {
        "segment": 2.0,
        "batch_size": 4,
        "seed": 0,
        "workers": 0,
        "train_subset": "training",
    }
    data = SeparationData(dset, **{**settings, **changes})
    progress = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(completed=0)))
    trainer: Any = SimpleNamespace(
        fit_loop=SimpleNamespace(epoch_loop=progress, restarting=False),
        global_rank=0,
        world_size=1,
        current_epoch=0,
        state=SimpleNamespace(fn="fit"),
        limit_test_batches=1.0,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    data.trainer = trainer
    return data


@pytest.fixture
def data(musdb_root: Path) -> SeparationData:
    data = make(musdb_root)
    data.prepare_data()
    data.setup("fit")
    return data


def test_training_batches_are_normalised_stems(data: SeparationData) -> None:
    loader = data.train_dataloader()
    assert len(loader) == 33 // 4
    raw = next(iter(loader))
    assert raw["stems"].dtype == torch.int16  # as the files are, converted on the device
    batch = data.on_after_batch_transfer(raw, 0)
    assert batch["stems"].shape == (4, 4, 2, 16000)
    assert batch["stems"].dtype == torch.float32
    assert batch["stems"].is_contiguous()
    assert len(batch["track"]) == 4
    mean, std = (raw[key].view(4, 1, 1, 1) for key in ("mean", "std"))
    expected = (raw["stems"].float() / 32768 - mean) / std
    torch.testing.assert_close(batch["stems"], expected.float(), rtol=1e-5, atol=1e-6)
    assert batch["stems"].sum(1).mean(1).std() == pytest.approx(1, rel=0.1)  # the mono mixture


def test_validation_batches_are_whole_normalised_tracks(
    data: SeparationData, musdb_root: Path
) -> None:
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
    assert [batch["track"] for batch in batches] == [["ANiMAL - Rockshow"], ["Leaf - Summerghost"]]
    mixture, stems = batches[0]["mixture"], batches[0]["stems"]
    assert mixture.shape == (1, 2, 96000)
    assert stems.shape == (1, 4, 2, 96000)
    path = musdb_root / "train" / "ANiMAL - Rockshow" / "mixture.wav"
    audio = torch.from_numpy(soundfile.read(path, dtype="float32")[0].T)
    mono = audio.mean(0)
    torch.testing.assert_close(mixture[0], (audio - mono.mean()) / mono.std(), rtol=1e-4, atol=1e-4)


def test_missing_and_silent_stems_have_no_score(tmp_path: Path) -> None:
    noise = torch.randn(3, 8000, 2, generator=torch.Generator().manual_seed(0)).numpy() / 10 + 0.01
    for name, stems in (("a", ("drums", "bass")), ("b", ("drums", "vocals")), ("c", SOURCES[:3])):
        folder = tmp_path / "valid" / name
        folder.mkdir(parents=True)
        for stem, samples in zip(stems, noise, strict=False):
            quiet = samples * (stem != "other")
            soundfile.write(folder / f"{stem}.wav", quiet, 8000, subtype="PCM_16")
    data = make(tmp_path, segment=0.5)
    data.dset = partial(FolderTracks, tmp_path, sources=SOURCES[:3], samplerate=8000)
    (tmp_path / "train").symlink_to(tmp_path / "valid")
    data.setup("fit")
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
    silent = {batch["track"][0]: batch["silent"].tolist() for batch in batches}
    assert silent == {
        "valid/a": [False, False, True],
        "valid/b": [False, True, True],
        "valid/c": [False, False, True],
    }
    rows = [
        scores.Score(
            batch["track"][0],
            "weights",
            0.0,
            scores.score_sources(batch, batch["stems"] * 0.9, SOURCES[:3]),
        )
        for batch in batches
    ]
    means = scores.averages(rows)
    assert means["nsdr_drums"] == pytest.approx(20, abs=1e-3)
    assert means["nsdr_bass"] == pytest.approx(20, abs=1e-3)
    assert means["nsdr_other"] != means["nsdr_other"]  # NaN
    assert means["nsdr"] == pytest.approx(20, abs=1e-3)


def test_the_test_set_is_opened_by_itself(musdb_root: Path) -> None:
    data = make(musdb_root)
    data.setup("test")
    assert data.train_set is None
    assert [batch["track"] for batch in data.test_dataloader()] == ["Dan - Four", "Eve - Five"]


def test_a_test_set_that_lacks_is_missed_before_training(tmp_path: Path, musdb_root: Path) -> None:
    (tmp_path / "train").symlink_to(musdb_root / "train")
    data = make(tmp_path)
    with pytest.raises((ValueError, OSError), match="test"):
        data.prepare_data()
    trainer: Any = data.trainer
    trainer.limit_test_batches = 0
    data.prepare_data()


def test_workers_give_what_the_process_itself_gives(musdb_root: Path) -> None:
    both = []
    for workers in (0, 2):
        data = make(musdb_root, workers=workers)
        data.setup("fit")
        both.append(list(data.train_dataloader()))
    assert len(both[0]) == len(both[1]) == 8
    for left, right in zip(*both, strict=True):
        assert left["track"] == right["track"]
        assert torch.equal(left["stems"], right["stems"])


def test_training_all_takes_the_validation_tracks_too(musdb_root: Path) -> None:
    data = make(musdb_root, train_subset="training_all")
    data.setup("fit")
    assert len(data.train_set.tracks) == 5


def test_a_loader_continues_where_the_trainer_is(data: SeparationData) -> None:
    whole = [batch["track"] for batch in data.train_dataloader()]
    loop: Any = data.trainer.fit_loop  # pyright: ignore[reportOptionalMemberAccess]
    loop.restarting, loop.epoch_loop.batch_progress.current.completed = True, 5
    assert [batch["track"] for batch in data.train_dataloader()] == whole[5:]
    state = data.train_dataloader().state_dict()
    assert state == {"extracts": 33, "batch": 4, "seed": 0}
    with pytest.raises(ValueError, match="had 34 extracts, here 33"):
        data.train_dataloader().load_state_dict({**state, "extracts": 34})


def test_processes_share_tracks_evenly_and_none_is_left_waiting() -> None:
    tracks = ["a", "b", "c", "d", "e"]
    shares = [list(TrackLoader(tracks, share=(rank, 3))) for rank in range(3)]
    assert shares == [["a", "d"], ["b", "e"], ["c", None]]
    assert SeparationData.on_after_batch_transfer(None, None, 0) is None  # pyright: ignore
