"""Fine-tuning: from a file of weights, of any kind, to a checkpoint for the stems one wants."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from demucs_lightning import pretrained
from demucs_lightning.commands import settings, start
from demucs_lightning.commands import test as scoring
from demucs_lightning.commands import train as training
from demucs_lightning.metrics import new_sdr
from demucs_lightning.pretrained import Package
from tests.pretrained.conftest import FOUR, official_file, reference_model, safetensors_file
from tests.pretrained.servers import make_zoo, serving

TWO = ["vocals", "choir"]
STILL = "optim.lr=1e-30"  # too little to change a weight


def write(kind: str, folder: Path, klass: str = "Demucs", **changes: Any) -> Path:
    """A small model of the reference with random weights, as a file of one of three kinds."""
    model = reference_model(klass, **changes)
    if kind == "th":
        return official_file(model, folder, "0123abcd")
    path = safetensors_file(model, folder, "0123abcd")
    if kind == "safetensors":
        return path
    package = pretrained.read(path)
    kwargs = {**package.kwargs, "segment": float(package.kwargs["segment"])}
    weights = {f"model.{name}": value.float() for name, value in package.state.items()}
    about = {"klass": package.klass, "kwargs": kwargs, "candidate": "weights", "emas": {}}
    torch.save({"state_dict": weights, "demucs_lightning": about}, folder / "own.ckpt")
    return folder / "own.ckpt"


def line(tiny: list[str], *more: str) -> list[str]:
    """A run as short as can be, without the settings of a model."""
    short = [each for each in tiny if not each.startswith("model.")]
    quick = ["segment=2", "data_augmentation=False", "batch_size=2", "logger=csv"]
    return [*short, *quick, *more]


def separated(model: nn.Module) -> Tensor:
    mixture = torch.randn(1, 2, 4000, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model(mixture)


def first_row(folder: Path) -> dict[str, float]:
    """The scores of the first validation."""
    with (folder / "csv" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["valid/nsdr"]]
    return {key: float(value) for key, value in rows[0].items() if key.startswith("valid/")}


def said(folder: Path) -> list[str]:
    """What a run wrote to its log."""
    return [each.strip() for each in (folder / "train.log").read_text().splitlines()]


@pytest.mark.parametrize(
    ("kind", "klass"),
    [("th", "Demucs"), ("safetensors", "HDemucs"), ("th", "HTDemucs"), ("ckpt", "HTDemucs")],
)
def test_from_a_file_to_a_checkpoint_for_other_stems(
    kind: str, klass: str, tiny: list[str], tmp_path: Path
) -> None:
    path = write(kind, tmp_path, klass, sources=TWO)
    more = ["trainer.limit_test_batches=0", "epochs=1", STILL]
    training.main(line(tiny, f"init_from={path}", "sources=[other,vocals]", *more))
    before: Any = pretrained.load_model(path)
    after: Any = pretrained.load_model(tmp_path / "run/best.ckpt")
    assert type(after) is type(before)
    assert after.sources == ["other", "vocals"]
    assert after.segment == (2 if klass == "HTDemucs" else 8)
    segment, before.segment = float(before.segment), after.segment
    theirs, ours = separated(before), separated(after)
    torch.testing.assert_close(ours[:, 1], theirs[:, 0], rtol=0, atol=1e-6)
    assert (ours[:, 0] - theirs[:, 1]).abs().max() > 1e-3
    lines = said(tmp_path / "run")
    begun = next(i for i, each in enumerate(lines) if each.startswith(f"Starting from {path}"))
    assert lines[begun].endswith(f"the model is {klass}:")
    assert lines[begun + 1 : begun + 4] == [
        "other: new, starts at random",
        "vocals: carried over",
        "choir: dropped",
    ]
    bits = "fp32" if kind == "ckpt" else "fp16 → fp32"
    assert lines[begun + 4].startswith(f"weights: {bits}, 0.0 M parameters from {path}")
    assert lines[begun + 5] == f"segment: {after.segment:g} s here, {segment:g} s in the file"


def test_the_first_validation_is_the_score_of_the_file(tiny: list[str], tmp_path: Path) -> None:
    path = write("safetensors", tmp_path, "HDemucs")
    overrides = line(tiny, f"init_from={path}", "trainer.limit_test_batches=0", "epochs=1", STILL)
    training.main(overrides)
    cfg = settings.compose(overrides)
    track = instantiate(cfg.dset)(subset="validation", segment=None)[0]
    mean, std = track["mean"], track["std"]
    with torch.no_grad():
        model: Any = pretrained.load_model(path)
        model.segment = cfg.model.segment
        estimates = instantiate(cfg.valid)(model, ((track["mixture"] - mean) / std)[None])
    expected = new_sdr(((track["stems"] - mean) / std)[None], estimates)[0]
    found = first_row(tmp_path / "run")
    for name, value in zip(FOUR, expected.tolist(), strict=True):
        assert found[f"valid/nsdr_{name}"] == pytest.approx(value, abs=1e-5)


def test_a_released_name_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["experiment=finetune", "samplerate=8000", "sources=[vocals,rest]"]
    cfg = settings.compose(overrides)
    assert cfg.init_from == "htdemucs"
    (tmp_path / "zoo").mkdir()
    with serving(make_zoo(tmp_path / "zoo"), tmp_path, monkeypatch) as server:
        _, first = start.begin(cfg, {}, given=settings.given(overrides))
        assert server.ranges("aaaa1111.safetensors")
        server.requests.clear()
        rebuilt, again = start.begin(cfg, {}, given=settings.given(overrides))
        assert server.requests == []
    assert first is not None
    assert again is not None
    assert first.decisions == again.decisions
    assert again.decisions[-1].endswith("M parameters from htdemucs (aaaa1111)")
    assert rebuilt.model._target_ == "demucs_lightning.models.HTDemucs"
    assert rebuilt.model.bottom_channels == 16  # the file's, not that of conf/model
    assert cfg.model.bottom_channels == 0  # the settings themselves are left alone


def bag(folder: Path) -> None:
    """`pair`: one model for drums and bass, one for other and vocals, and both for nothing else."""
    for seed, name in enumerate(("aaaa1111", "955717e8")):
        official_file(reference_model("Demucs", seed=seed), folder, name)
    rows = [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
    members = {"models": ["aaaa1111", "955717e8"], "weights": rows}
    (folder / "pair.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(members)))


def test_a_specialist_of_a_bag(tiny: list[str], tmp_path: Path) -> None:
    bag(tmp_path)
    more = ["init_from=pair", f"init_repo={tmp_path}", "weights=[0,0,0,1]", "optim.lr=0.1"]
    training.main(line(tiny, "experiment=finetune", *more, "data_augmentation=true"))
    assert any(each.startswith("Starting from pair (955717e8)") for each in said(tmp_path / "run"))
    run = OmegaConf.load(tmp_path / "run" / "settings.yaml")
    assert run.checkpoint.monitor == "valid/nsdr_vocals"
    checkpoint = torch.load(tmp_path / "run" / "best.ckpt", weights_only=True)
    keeper = next(state for name, state in checkpoint["callbacks"].items() if "Checkpoints" in name)
    with (tmp_path / "run" / "csv" / "metrics.csv").open() as file:
        scores = [row["valid/nsdr_vocals"] for row in csv.DictReader(file)]
    assert keeper["best_score"] == pytest.approx(max(float(each) for each in scores if each))
    # What weighs nothing in the loss has no gradient of its own, and nothing is spoilt by it.
    start_of = pretrained.build(pretrained.find("955717e8", repo=tmp_path).packages[0]).state_dict()
    own = {name.removeprefix("model."): v for name, v in checkpoint["state_dict"].items()}
    moved = {name for name, value in own.items() if not torch.equal(value, start_of[name])}
    bias = (own["decoder.1.3.bias"] - start_of["decoder.1.3.bias"]).abs()
    assert bias[:6].max() == 0 < bias[6:].min()
    assert moved >= {"encoder.0.0.weight", "decoder.1.3.weight"}


def test_a_run_goes_on_with_the_same_command(tiny: list[str], tmp_path: Path) -> None:
    path = write("safetensors", tmp_path)
    more = ["sources=[vocals,bass]", "model.rescale=0.2", "model=Demucs"]
    command = line(tiny, f"init_from={path}", *more, "trainer.limit_test_batches=0")
    training.main(command)
    training.main([*command, "epochs=1", f"hydra.run.dir={tmp_path}/half"])
    last = tmp_path / "half" / "last.ckpt"
    path.unlink()  # it is no longer needed
    training.main([*command, f"resume_checkpoint={last}", f"hydra.run.dir={tmp_path}/rest"])
    whole, rest = (
        torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("run", "rest")
    )
    assert whole["global_step"] == rest["global_step"] == 2
    assert whole["demucs_lightning"]["kwargs"] == rest["demucs_lightning"]["kwargs"]
    assert rest["demucs_lightning"]["kwargs"]["rescale"] == 0.2
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, rest["state_dict"][name]), name
    words = f"init_from={path} is not read: training goes on with the model of {last}"
    assert words in said(tmp_path / "rest")


def test_scoring_what_was_trained(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write("th", tmp_path, "HTDemucs")
    training.main(line(tiny, f"init_from={path}", "sources=[vocals,bass]", "epochs=1"))
    capsys.readouterr()
    more = ["data.workers=0", "logger=csv", f"hydra.run.dir={tmp_path}/scored"]
    scoring.main([f"resume_checkpoint={tmp_path}/run/best.ckpt", tiny[0], *more])
    table = capsys.readouterr().out
    assert ["dB", "vocals", "bass", "overall"] in [row.split() for row in table.splitlines()]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model=HDemucs"], "own.ckpt holds the model Demucs, but model=HDemucs was asked for"),
        (["samplerate=44100"], "own.ckpt is for 8000 Hz, but samplerate is 44100: set "
         "samplerate=8000."),
        (["audio_channels=1"], "is for 2 channels, but audio_channels is 1: set audio_channels=2."),
        (["sources=[a,b]"], "own.ckpt separates drums, bass, other, vocals, none of which is in "
         "sources=[a,b]: name those alike"),
        (["model.channels=8"], "own.ckpt does not fit: its encoder.0.0.weight is 4 x 2 x 8, but "
         "with these settings it would be 8 x 2 x 8."),
        (["model.nfft=512"], "model.nfft is no argument of Demucs, the model that"),
        (["init_from=nowhere.ckpt"], "nowhere.ckpt does not exist"),
        (["init_from=htdemuks"], "did you mean htdemucs"),
        (["init_from=pair", "init_repo=."], "pair is a bag of 2 models, and one is wanted: name "
         "one of aaaa1111 (drums, bass) · 955717e8 (other, vocals), or give weights that are 0 for "
         "all sources but one."),
        (["init_from=nobody", "init_repo=."], "has no model 'nobody': it has pair, 955717e8"),
        (["init_from=[a]"], "init_from is ['a']: it must be text"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_is_built(
    overrides: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "build_module", None)
    write("ckpt", tmp_path)
    (tmp_path / "0123abcd.safetensors").unlink()
    bag(tmp_path)
    with pytest.raises(SystemExit) as stop:
        training.main(["init_from=own.ckpt", "samplerate=8000", "logger=csv", *overrides])
    assert stop.value.code == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert words in error


def test_a_signature_is_text_even_if_it_looks_like_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert settings.compose(["init_from=955717e8"]).init_from == "955717e8"
    assert settings.compose(["init_from='955717e8'"]).init_from == "955717e8"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        training.main(["init_from=955717e8", f"init_repo={tmp_path}", "logger=csv"])
    assert "has no model '955717e8'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "value",
    [{"_target_": "os.system", "command": "true"}, "${oc.env:HOME}", [{"_target_": "os.abort"}]],
)
def test_arguments_of_a_file_are_no_instructions(value: Any) -> None:
    package = Package("HDemucs", {"sources": FOUR, "wiener_residual": value}, {}, "a.ckpt")
    with pytest.raises(
        ValueError, match=r"a\.ckpt is damaged: its wiener_residual is no plain value"
    ):
        start.as_settings(package)


def test_what_the_best_is_best_in() -> None:
    for more, monitor in (
        ([], "valid/nsdr"),
        (["weights=[1,0,1,0]"], "valid/nsdr"),
        (["weights=[0,2,0,0]"], "valid/nsdr_bass"),
        (["sources=[vocals]"], "valid/nsdr"),
        (["weights=[0,2,0,0]", "checkpoint.monitor=valid/loss"], "valid/loss"),
    ):
        assert settings.compose(more).checkpoint.monitor == monitor


def test_the_recipe() -> None:
    cfg = settings.compose(["experiment=finetune", "batch_size=3"])
    assert cfg.init_from == "htdemucs"
    assert (cfg.epochs, cfg.optim.lr, cfg.optim.optim, cfg.optim.clip_grad) == (
        50,
        1e-4,
        "adamw",
        5,
    )
    assert cfg.optim.transformer_weight_decay == 0.05
    assert cfg.model.segment == pytest.approx(7.8)  # as in htdemucs itself
    augment = instantiate(cfg.augment)
    assert [type(step).__name__ for step in augment.steps] == [
        *("Repitch", "Shift", "FlipChannels", "FlipSign")
    ]
    assert augment.shift.same
