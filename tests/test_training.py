"""LitSeparator and what stands around it, in runs of a few steps."""

import csv
import errno
import logging
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from demucs_lightning import pretrained
from demucs_lightning.callbacks import AtomicIO, Checkpoints, FiniteGuard, NonFiniteLoss, Progress
from demucs_lightning.commands import settings
from demucs_lightning.commands import train as training
from demucs_lightning.data import MusdbHQ
from demucs_lightning.metrics import new_sdr
from demucs_lightning.models import Demucs
from demucs_lightning.separation import separate
from demucs_lightning.training import LitSeparator

SOURCES = ["drums", "bass", "other", "vocals"]
SMALL = {
    "Demucs": ["model.depth=2"],
    "HDemucs": ["model.nfft=1024", "model.depth=5"],
    "HTDemucs": ["model.nfft=512", "model.depth=2", "model.dconv_comp=2", "model.t_heads=2"],
}


@pytest.fixture
def overrides(tiny: list[str]) -> list[str]:
    small = ["model=Demucs", "model.depth=2", "model.resample=false", "segment=2", "logger=csv"]
    return [*small, *tiny, "trainer.limit_test_batches=0"]


def run(overrides: list[str], folder: Path) -> LitSeparator:
    return training.run(settings.compose(overrides), folder)


def logged(folder: Path, key: str) -> list[float]:
    with (folder / "csv" / "metrics.csv").open() as file:
        return [float(row[key]) for row in csv.DictReader(file) if row.get(key)]


def module(**changes: Any) -> Any:
    cfg = settings.compose(
        ["model=Demucs", "model.channels=4", "model.depth=2", "segment=2", "samplerate=4000"]
        + [f"{key}={value}" for key, value in changes.items()]
    )
    torch.manual_seed(0)
    built: Any = training.build_module(cfg, {})
    built.log = built.log_dict = lambda *_, **__: None
    trainer = SimpleNamespace(current_epoch=0, global_rank=0, world_size=1)
    built._trainer = trainer
    return built


def test_a_step_depends_on_its_place_and_on_nothing_drawn_before() -> None:
    lit, stems = module(), torch.randn(4, 4, 2, 8000)
    batch = {"stems": stems, "track": ["a"] * 4}
    first = lit.training_step(batch, 3).item()
    torch.randn(17)
    assert lit.training_step(batch, 3).item() == first
    assert lit.training_step(batch, 4).item() != first
    lit._trainer.current_epoch = 1
    assert lit.training_step(batch, 3).item() != first
    lit._trainer.current_epoch, lit._trainer.global_rank = 0, 1
    assert lit.training_step(batch, 3).item() != first


def test_a_step_without_augmentation_is_the_loss_of_the_batch() -> None:
    lit, stems = module(data_augmentation="false"), torch.randn(4, 4, 2, 8000)
    loss = lit.training_step({"stems": stems, "track": []}, 0)
    estimates = lit.model(stems.sum(1))
    assert loss.item() == pytest.approx((estimates - stems).abs().mean().item(), rel=1e-5)


def test_weights_of_sources_and_the_penalty_enter_the_loss() -> None:
    batch = {"stems": torch.randn(4, 4, 2, 8000), "track": []}
    plain = module(data_augmentation="false", weights="[0,0,0,1]")
    loss = plain.training_step(batch, 0).item()
    vocals = (plain.model(batch["stems"].sum(1)) - batch["stems"])[:, 3].abs().mean().item()
    assert loss == pytest.approx(vocals, rel=1e-5)
    penalty = {"svd.penalty": 0.1, "svd.min_size": 0}
    with_penalty = module(data_augmentation="false", weights="[0,0,0,1]", **penalty)
    assert with_penalty.training_step(batch, 0).item() > loss + 1e-3


@pytest.mark.parametrize("precision", ["16", "bf16", "32", "64"])
@pytest.mark.parametrize("model", SMALL)
def test_precisions_train(tiny: list[str], tmp_path: Path, model: str, precision: str) -> None:
    small = SMALL[model]
    line = [f"model={model}", *small, "segment=2", "logger=csv", *tiny, "epochs=1"]
    lit = run([*line, f"trainer.precision={precision}", "trainer.limit_test_batches=0"], tmp_path)
    (loss,) = logged(tmp_path, "train/loss")
    assert 0.1 < loss < 3
    dtype = torch.float64 if precision == "64" else torch.float32
    assert {parameter.dtype for parameter in lit.model.parameters()} == {dtype}
    assert all(parameter.isfinite().all() for parameter in lit.model.parameters())


def test_training_lowers_the_loss_and_keeps_the_best(overrides: list[str], tmp_path: Path) -> None:
    longer = ["epochs=6", "trainer.limit_train_batches=1.0", "optim.lr=1e-2", "optim.clip_grad=5"]
    run([*overrides, *longer, "data_augmentation=false"], tmp_path)
    losses, nsdr = logged(tmp_path, "train/loss"), logged(tmp_path, "valid/nsdr")
    assert losses[-1] < 0.8 * losses[0]
    assert max(nsdr) > 1
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert best["callbacks"]["Checkpoints"]["best_score"] == pytest.approx(max(nsdr), rel=1e-5)


def test_validation_is_what_anybody_would_compute(
    overrides: list[str], tmp_path: Path, musdb_root: Path
) -> None:
    run([*overrides, "trainer.limit_val_batches=1.0"], tmp_path)
    model: Any = pretrained.load_model(tmp_path / "last.ckpt")
    tracks = MusdbHQ(musdb_root, "validation", SOURCES, samplerate=8000)
    rows, losses = [], []
    for track in (tracks[0], tracks[1]):
        mixture, stems = ((track[k] - track["mean"]) / track["std"] for k in ("mixture", "stems"))
        estimates = separate(model, mixture[None], overlap=0.0)
        rows.append(new_sdr(stems[None], estimates)[0])
        losses.append((estimates[0] - stems).abs().mean().item())
    expected = torch.stack(rows).mean(0)
    for name, value in zip(SOURCES, expected.tolist(), strict=True):
        assert logged(tmp_path, f"valid/nsdr_{name}")[-1] == pytest.approx(value, abs=1e-4)
    assert logged(tmp_path, "valid/nsdr")[-1] == pytest.approx(expected.mean().item(), abs=1e-4)
    assert logged(tmp_path, "valid/loss")[-1] == pytest.approx(sum(losses) / 2, abs=1e-5)


def test_the_best_candidate_is_named_and_validated(overrides: list[str], tmp_path: Path) -> None:
    # After a huge last step, the average over the steps is better than the weights.
    line = ["ema.batch=[0.9]", "ema.epoch=[0.5]", "optim.lr=1", "trainer.limit_train_batches=3"]
    run([*overrides, *line, "epochs=1"], tmp_path)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    state = checkpoint["demucs_lightning"]
    names = ["weights", "ema_epoch_0.5", "ema_batch_0.9"]
    found = {name: logged(tmp_path, f"candidates/{name}")[0] for name in names}
    assert state["candidate"] == max(found, key=lambda name: found[name])
    assert logged(tmp_path, "valid/nsdr")[0] == pytest.approx(max(found.values()), rel=1e-6)
    # An average over epochs has seen one epoch: it is the weights.
    assert found["ema_epoch_0.5"] == pytest.approx(found["weights"], abs=1e-6)
    assert state["emas"]["ema_batch_0.9"]["count"] == pytest.approx(1 + 0.9 + 0.81)


def broken(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Let the model answer NaN from its call ``at`` on, in training."""
    calls, plain = iter(range(1000)), Demucs.forward

    def forward(self: Any, mixture: Tensor) -> Tensor:
        estimates = plain(self, mixture)
        return estimates * float("nan") if self.training and next(calls) >= at else estimates

    monkeypatch.setattr(Demucs, "forward", forward)


def test_a_loss_that_is_not_finite_stops_and_saves_nothing(
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken(monkeypatch, at=1)
    saved = []
    plain = AtomicIO.save_checkpoint

    def save(self: Any, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        saved.append((Path(path).name, checkpoint["global_step"]))
        plain(self, checkpoint, path)

    monkeypatch.setattr(AtomicIO, "save_checkpoint", save)
    with pytest.raises(SystemExit) as stop:
        training.main(overrides)
    assert stop.value.code == 1
    said, how = capsys.readouterr().err.splitlines()[-2:]
    assert how == f"To continue: resume_checkpoint={tmp_path}/run/last.ckpt"
    assert said.startswith("error: The loss of step 2 (epoch 2, batch 1) is not finite, tracks: ")
    assert any(name in said for name in ("Ann - One", "Bob - Two", "Cem - Three"))
    assert saved == [("best.ckpt", 1)]
    last = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in last["state_dict"].values())


def test_weights_that_are_not_finite_are_never_written(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(self: Any, *_: Any) -> None:
        next(self.model.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(LitSeparator, "on_validation_epoch_end", spoil)
    monkeypatch.setattr(Checkpoints, "on_validation_end", Checkpoints.on_train_epoch_end)
    with pytest.raises(NonFiniteLoss, match=r"no longer finite: .*last\.ckpt stays as it was"):
        run(overrides, tmp_path)
    assert not list(tmp_path.glob("*.ckpt"))


def test_the_guard_waits_for_no_step_but_lets_none_pass() -> None:
    guard: Any = FiniteGuard()
    guard.tracks, guard.where = ["a", "a", "b"], "step 1"
    guard.flags = torch.tensor([1.0, 1.0])
    guard.check()
    guard.flags = torch.tensor([0.0, 0.0])
    with pytest.raises(NonFiniteLoss, match=r"tracks: a, b;"):
        guard.on_validation_start(None, None)
    guard.on_train_end(None, None)  # said once


def test_a_write_that_fails_leaves_the_former_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    AtomicIO().save_checkpoint({"step": 1}, path)

    def fail(content: Any, file: Any) -> None:
        file.write(b"half")
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("unexpected pos") from error  # as torch.save does

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space left on device") as caught:
        AtomicIO().save_checkpoint({"step": 2}, path)
    assert caught.value.filename == str(path)
    assert AtomicIO().load_checkpoint(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_monitor_that_is_not_logged_is_said(overrides: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint\.monitor is 'valid/sdr': .*valid/nsdr_drums"):
        run([*overrides, "checkpoint.monitor=valid/sdr"], tmp_path)


@pytest.mark.parametrize(
    ("mode", "values", "best"), [("max", [1.0, 3.0, 2.0], 3.0), ("min", [3.0, 1.0, 2.0], 1.0)]
)
def test_the_best_is_kept(tmp_path: Path, mode: str, values: list[float], best: float) -> None:
    keeper: Any = Checkpoints(tmp_path, monitor="score", mode=mode)
    lit = SimpleNamespace(position=(0, 1), state_dict=lambda: {"w": torch.zeros(1)})
    for value in values:
        trainer = SimpleNamespace(
            sanity_checking=False,
            state=SimpleNamespace(fn="fit"),
            callback_metrics={"score": torch.tensor(value)},
            is_global_zero=True,
            save_checkpoint=lambda path, value=value: AtomicIO().save_checkpoint(
                {"v": value}, path
            ),
        )
        keeper.on_validation_end(trainer, lit)
    assert AtomicIO().load_checkpoint(tmp_path / "best.ckpt") == {"v": best}
    assert AtomicIO().load_checkpoint(tmp_path / "last.ckpt") == {"v": 2.0}
    assert {path.name for path in tmp_path.iterdir()} == {"best.ckpt", "last.ckpt"}


def test_tensorboard_shows_curves_and_excerpts(overrides: list[str], tmp_path: Path) -> None:
    line = ["logger=tensorboard", "excerpt.every=2", "excerpt.seconds=1", "epochs=3"]
    line += ["trainer.log_every_n_steps=1"]
    run([word for word in overrides if not word.startswith("logger")] + line, tmp_path)
    events = EventAccumulator(
        str(tmp_path / "tensorboard"), size_guidance={"audio": 0, "images": 0}
    )
    events.Reload()
    tags: Any = events.Tags()
    assert set(tags["audio"]) == {f"excerpt/{name}" for name in SOURCES}
    assert set(tags["images"]) == {f"spectrogram/{name}" for name in SOURCES}
    clips = events.Audio("excerpt/drums")
    assert [clip.step for clip in clips] == [1, 3]  # of the first and the third epoch
    assert clips[0].sample_rate == 8000
    assert clips[0].length_frames == 8000
    curves = {"train/loss", "train/loss_step", "valid/loss", "valid/nsdr", "lr-Adam"}
    assert curves | {f"valid/nsdr_{name}" for name in SOURCES} <= set(tags["scalars"])


def test_the_progress_bar_counts_the_whole_run(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    bars = []

    class Bar:
        disable = False

        def __init__(self, **arguments: Any) -> None:
            self.arguments, self.count, self.texts = arguments, 0, []
            bars.append(self)

        def update(self) -> None:
            self.count += 1

        def set_description(self, text: str, refresh: bool) -> None:
            self.texts.append(text)

        def set_postfix(self, **values: str) -> None:
            self.texts.append(str(values))

        def set_postfix_str(self, text: str) -> None:
            self.texts.append(text)

        def close(self) -> None:
            self.count = -self.count

        external_write_mode = staticmethod(nullcontext)
        format_interval = staticmethod(lambda seconds: f"{seconds} s")

    monkeypatch.setattr("demucs_lightning.callbacks.progress.tqdm", Bar)
    monkeypatch.setattr("demucs_lightning.callbacks.progress.PERIOD", -1)
    caplog.set_level(logging.INFO)
    run([*overrides, "trainer.enable_progress_bar=true", "trainer.limit_train_batches=2"], tmp_path)
    (bar,) = bars
    assert (bar.arguments["total"], bar.arguments["initial"]) == (4, 0)
    assert bar.count == -4  # closed after four batches
    assert "epoch 2/2" in bar.texts
    assert any(text.startswith("{'loss': '0.") for text in bar.texts)
    assert "validation 1/1: ANiMAL - Rockshow" in bar.texts
    lines = [line for line in caplog.messages if line.startswith("epoch ")]
    assert len(lines) == 2
    for part in ("epoch 2/2", "loss 0.", "valid loss 0.", "nsdr drums", "0 s left"):
        assert part in lines[1]


def test_the_bar_can_be_switched_off() -> None:
    bar = Progress()
    bar.disable()
    assert not bar.enabled


@pytest.mark.parametrize(
    ("precision", "clip", "fused"),
    [
        ("16-mixed", 1.0, False),
        ("16-mixed", 0.0, True),
        ("16-mixed", None, True),
        ("bf16-mixed", 1.0, True),
        ("32-true", 1.0, True),
    ],
)
def test_only_clipping_under_fp16_does_without_the_fused_optimizer(
    precision: str, clip: float | None, fused: bool
) -> None:
    lit = module()
    lit._trainer = SimpleNamespace(precision=precision, gradient_clip_val=clip)
    (optimizer,), _ = lit.configure_optimizers()
    assert bool(optimizer.defaults["fused"]) == fused


def test_validation_and_test_leave_out_silent_sources() -> None:
    lit = module()
    lit._trainer.testing = False
    stems = torch.randn(1, 4, 2, 8000)
    silent = torch.tensor([False, True, False, True])
    batch = {"mixture": stems.sum(1), "stems": stems, "silent": silent, "track": ["one"]}
    with torch.no_grad():
        lit.validation_step(batch, 0)
    (row,) = lit.scores
    missing = [value != value for value in row.nsdr.values()]
    assert missing == silent.tolist()
