"""Settings: every key is read, and what is not allowed is refused in a sentence."""

import inspect
import itertools
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from lightning.pytorch import loggers
from omegaconf import DictConfig, OmegaConf

from demucs_lightning.commands import hardware, settings
from demucs_lightning.commands import train as training
from demucs_lightning.commands.advice import OUT_OF_MEMORY
from demucs_lightning.commands.explain import explained, sentence

CONF = settings.conf_folder()


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def mixed(*lists: list[str]) -> list[tuple[str, ...]]:
    """Every choice of every list at least once, in few combinations."""
    length = max(map(len, lists))
    return list(itertools.islice(zip(*map(itertools.cycle, lists), strict=False), length))


def leaves(node: Any, prefix: str = "") -> list[str]:
    """Dotted keys of all values."""
    found = []
    for name in node:
        raw = OmegaConf.to_container(node, resolve=False)
        key = f"{prefix}{name}"
        inner = isinstance(raw, dict) and isinstance(raw[name], dict) and raw[name]
        found += leaves(node[name], f"{key}.") if inner else [key]
    return found


def traced(cfg: DictConfig, read: set[str]) -> Any:
    """The same settings, each of which notes in ``read`` that somebody asked for it."""
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    keys, values = leaves(cfg), {}

    def trace(key: str, *value: Any) -> Any:
        read.add(key)
        return value[0] if value else values[key]

    OmegaConf.register_new_resolver("trace", trace, replace=True)
    for key in keys:
        *parents, last = key.split(".")
        node = raw
        for parent in parents:
            node = node[parent]
        values[key] = node[last]
        is_reference = isinstance(node[last], str) and node[last].startswith("${")
        node[last] = f"${{trace:{key},{node[last]}}}" if is_reference else f"${{trace:{key}}}"
    return OmegaConf.create(raw)


def fake_wandb(**arguments: Any) -> Any:
    inspect.signature(loggers.WandbLogger).bind(**arguments)
    return loggers.CSVLogger(arguments["save_dir"])


@pytest.mark.parametrize(
    ("model", "dset", "logger"), mixed(*map(choices, ("model", "dset", "logger")))
)
def test_every_setting_is_read(
    model: str, dset: str, logger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("demucs_lightning.commands.checks.find_spec", lambda name: name)
    cfg = settings.compose(
        [f"model={model}", f"dset={dset}", f"logger={logger}", "model.channels=8"]
    )
    monkeypatch.setattr(loggers, "WandbLogger", fake_wandb)
    read: set[str] = set()
    built = {}
    # These look at all settings at once, to write them down.
    for name in ("describe_model", "save_settings", "score_best"):
        monkeypatch.setattr(training, name, lambda *_: {})
    monkeypatch.setattr(
        training, "fit", lambda trainer, module, data, resume: built.update(data=data)
    )
    training.run(traced(cfg, read), tmp_path)
    assert read == set(leaves(cfg))
    dataset = built["data"].dset
    inspect.signature(dataset.func).bind(subset="training", segment=1.0, **dataset.keywords)


def test_a_setting_that_nobody_reads_would_be_noticed(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"used": 1, "group": {"also": 2, "unused": 3}, "same": "${used}"})
    read: set[str] = set()
    copy = traced(cfg, read)
    assert copy.same + copy.group.also == 3
    assert set(leaves(cfg)) - read == {"group.unused"}


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_overlays_compose(experiment: str) -> None:
    cfg = settings.compose([f"experiment={experiment}", "seed=7"])
    assert cfg.seed == 7
    instantiate(cfg.model)


def test_the_command_line_wins_over_a_data_set_and_an_overlay() -> None:
    assert settings.compose(["dset=musdb7s"]).segment == 6
    cfg = settings.compose(["segment=3", "dset=musdb7s", "data_root=elsewhere"])
    assert (cfg.segment, cfg.data.segment, cfg.dset.root) == (3, 3, "elsewhere")
    assert settings.compose(["experiment=demo", "batch_size=8"]).data.batch_size == 8


@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        ([], 10.0),  # segment=11, and up to 1 s of shift
        (["data_augmentation=false"], 11),
        (["segment=8.8", "dset.shift=1"], 7.8),
        (["augment.repitch.proba=0.2"], (int(0.88 * 485_100) - 44_100) / 44_100),
        (["samplerate=8000", "segment=3.00013"], 16_001 / 8000),
        (["dset=demo"], None),
    ],
)
def test_htdemucs_separates_at_the_segment_that_training_leaves(
    line: list[str], seconds: float | None
) -> None:
    cfg = settings.compose(["model=HTDemucs", "model.channels=8", *line])
    model = instantiate(cfg.model, _convert_="all")
    length = int(cfg.segment * cfg.samplerate)
    if cfg.data_augmentation:
        length = instantiate(cfg.augment).output_length(length)
    assert model.training_length == length
    assert seconds is None or cfg.model.segment == pytest.approx(seconds, rel=1e-9)
    assert model.valid_length(length) == length


@pytest.mark.parametrize(
    "override", ["samplerate=abc", "augment.shift=-1", "augment.shift=20", "segment=inf"]
)
def test_a_wrong_setting_behind_the_segment_is_told_in_its_own_words(
    override: str, capsys: Any
) -> None:
    with pytest.raises(SystemExit), explained():
        settings.compose(["model=HTDemucs", override])
    (line,) = capsys.readouterr().err.splitlines()
    assert override.partition("=")[0] in line


def test_defaults_are_those_of_the_design() -> None:
    cfg = settings.compose([])
    flat = {key: OmegaConf.select(cfg, key) for key in leaves(cfg)}
    assert (
        flat
        | {
            "gpus": 1,
            "download": False,
            "data_root": "./musdb18hq",
            "samplerate": 44100,
            "segment": 11,
            "epochs": 360,
            "batch_size": 4,
            "seed": 42,
            "data_augmentation": True,
            "augment.shift": 1.0,
            "augment.shift_same": False,
            "augment.flip": True,
            "augment.scale.proba": 1.0,
            "augment.scale.min": 0.25,
            "augment.scale.max": 1.25,
            "augment.remix.proba": 1.0,
            "augment.remix.group_size": 4,
            "augment.repitch.proba": 0.0,
            "optim.lr": 3e-4,
            "optim.betas": [0.9, 0.999],
            "optim.weight_decay": 0.0,
            "optim.loss": "l1",
            "optim.clip_grad": 0.0,
            "weights": [1, 1, 1, 1],
            "model._target_": "demucs_lightning.models.HDemucs",
            "model.segment": 44,
        }
        == flat
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("epocs=3", "epocs is no setting: did you mean epochs?"),
        ("lr=1e-4", "lr is no setting: did you mean optim.lr?"),
        ("model.channel=4", "did you mean model.channels?"),
        ("+nobody_reads=1", "nobody_reads is no setting"),
        ("augment.remix.groupsize=2", "did you mean augment.remix.group_size?"),
        ("trainer.max_stepz=2", "did you mean trainer.max_steps?"),
        ("trainer.callbacks=[]", "the run itself takes care of it"),
        ("~epochs", "epochs can't be left out"),
        (
            "model=XYZ",
            "model=XYZ: there is no such model; choose from Demucs, DemucsV2, HDemucs, HTDemucs.",
        ),
        ("dset=mnist", "choose from demo, folder, musdb18hq, musdb7s."),
        ("logger=paper", "choose from csv, tensorboard, wandb."),
        ("experiment=none", "choose from demo, finetune, low_memory."),
        ("epochs", "'epochs' can't be read: a setting is written key=value."),
        ("epochs=abc", "epochs is 'abc': it must be a whole number."),
        ("epochs=1.5", "epochs is 1.5: it must be a whole number."),
        ("epochs=0", "epochs is 0: it must be above 0."),
        ("segment=-1", "segment is -1: it must be above 0."),
        (
            "trainer.accumulate_grad_batches=0",
            "trainer.accumulate_grad_batches is 0: it must be above 0.",
        ),
        ("trainer.devices=-1", "trainer.devices is -1: it must be above 0."),
        ("segment=0.5", "segment=0.5 leaves nothing after augment.shift=1.0"),
        ("batch_size=0", "batch_size is 0"),
        ("batch_size=6", "augment.remix.group_size=4 does not divide batch_size=6"),
        ("samplerate=0", "samplerate is 0"),
        ("audio_channels=3", "audio_channels is 3: it must be 1 or 2."),
        ("gpus=foo", "gpus is foo"),
        ("gpus=[0,0]", "gpus is [0, 0]"),
        ("gpus=-1", "gpus is -1"),
        ("gpus=[]", "gpus is []: it must be a number of GPUs (gpus=2, or 0 for the CPU) or a"),
        ("memory=null", "memory is null: it must be one of fast, balanced, low."),
        ("model.memory=low2", "model.memory is 'low2': it must be one of fast, balanced, low."),
        ("optim.state=null", "optim.state is None: it must be one of fp32, bf16, 8bit."),
        ("data_augmentation=maybe", "data_augmentation is 'maybe': it must be true or false."),
        ("data_root=[1]", "data_root is [1]: it must be text."),
        ("model.depth=deep", "model.depth is 'deep': it must be a whole number."),
        ("optim.lr=fast", "optim.lr is 'fast': it must be a number."),
        ("optim.lr=0", "optim.lr is 0: it must be above 0."),
        ("optim.transformer_lr=fast", "optim.transformer_lr is fast: it must be above 0."),
        ("optim.transformer_weight_decay=-1", "optim.transformer_weight_decay is -1"),
        ("optim.optim=sgd", "optim.optim is 'sgd': it must be adam or adamw."),
        ("optim.loss=l3", "optim.loss is 'l3': it must be l1 or mse."),
        ("optim.betas=[0.9]", "optim.betas is [0.9]"),
        ("optim.schedule=up", "it must be constant or cosine."),
        ("weights=[1,1]", "weights has 2 values: it must have one for each of the sources drums"),
        ("weights=[1,1,1,a]", "it must be a list of numbers"),
        ("sources=[]", "sources is []"),
        ("sources=drums", "sources is 'drums': it must be a list."),
        ("augment.scale.proba=2", "augment.scale.proba is 2"),
        ("ema.batch=[1.0]", "ema is 1.0"),
        ("svd.penalty=-1", "svd.penalty is -1"),
        ("data.workers=-1", "data.workers is -1: it must be 0 or more."),
        ("trainer.precision=8", "trainer.precision is 8: it must be auto, 16, bf16, 32 or 64."),
        ("augment.remix.pool=-1", "augment.remix.pool is -1: it must be 0 or more."),
        ("optim.state=int4", "optim.state is 'int4': it must be one of fp32, bf16, 8bit."),
        ("compile=maybe", "compile is 'maybe': it must be one of false, true, cudagraphs."),
        ("checkpoint.mode=most", "checkpoint.mode is 'most': it must be max or min."),
        ("excerpt.seconds=0", "excerpt.seconds is 0: it must be above 0."),
        ("logger=wandb", "needs the package wandb"),
        ("segment=${nothing}", "nothing"),
        ("resume_checkpoint=' '", "resume_checkpoint is empty: it must be a checkpoint"),
        ("resume_checkpoint=", "resume_checkpoint is empty: it must be a checkpoint (.ckpt), or"),
        ("segment=inf", "segment is inf: it must be a finite number above 0."),
        ("segment=nan", "segment is nan: it must be a finite number above 0."),
        ("seed=-1", "seed is -1: it must be from 0 to 4294967295."),
        ("seed=4294967296", "seed is 4294967296"),
        ("test.overlap=1.5", "test.overlap is 1.5: it must be at least 0 and below 1."),
        ("valid.overlap=-0.5", "valid.overlap is -0.5"),
        ("test.shifts=-1", "test.shifts is -1: it must be 0 or more."),
        ("test.shifts=1.5", "test.shifts is 1.5: it must be a whole number."),
        ("valid.batch_size=0", "valid.batch_size is 0: it must be above 0."),
        ("test.segment=0", "test.segment is 0: it must be above 0."),
        ("test.segment=long", "test.segment is 'long': it must be a number."),
        ("checkpoint.monitor=valid/sdr", "checkpoint.monitor is 'valid/sdr': it must be one of"),
        ("trainer.accelerator=tpu", "trainer.accelerator is 'tpu': it must be one of null, cpu,"),
        ("data_root=~/x", "Write out the path instead of ~."),
    ],
)
def test_what_is_not_allowed_is_said(
    override: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("demucs_lightning.commands.checks.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop, explained():
        settings.compose([override])
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_any_trainer_argument_is_a_setting(tmp_path: Path) -> None:
    cfg = settings.compose(
        ["trainer.max_time=00:01:00:00", "trainer.overfit_batches=2", "logger=csv"]
    )
    trainer: Any = training.build_trainer(cfg, tmp_path)
    assert trainer.overfit_batches == 2
    assert trainer.max_epochs == 360


@pytest.mark.parametrize(
    ("count", "gpus", "expected"),
    [
        (0, 1, {"accelerator": "cpu", "devices": 1}),
        (0, [0, 2], {"accelerator": "cpu", "devices": 1}),
        (4, 0, {"accelerator": "cpu", "devices": 1}),
        (4, 1, {"accelerator": "gpu", "devices": [0]}),
        (4, 2, {"accelerator": "gpu", "devices": [0, 1]}),
        (4, [0, 2, 3], {"accelerator": "gpu", "devices": [0, 2, 3]}),
    ],
)
def test_gpus(
    count: int, gpus: Any, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert hardware.devices(gpus) == expected


def test_a_gpu_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(
        ValueError, match=r"gpus=\[0, 5\]: there is no GPU 5, this machine has GPUs 0 to 1"
    ):
        hardware.devices([0, 5])


def test_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (True, False):
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
        assert hardware.accelerator(None, "mps") == hardware.accelerator("auto", "mps") == "mps"
        assert hardware.accelerator("cpu", "gpu") == "cpu"
        if there:
            assert hardware.accelerator("cuda", "gpu") == "gpu"
    with pytest.raises(ValueError, match=r"trainer\.accelerator is gpu: this machine has no such"):
        hardware.accelerator("gpu", "cpu")


def test_precisions_by_device() -> None:
    names = {name: hardware.precision(name, "gpu") for name in (16, "bf16", 32, 64)}
    assert names == {16: "16-mixed", "bf16": "bf16-mixed", 32: "32-true", 64: "64-true"}
    assert hardware.precision(16, "cpu") == "bf16-mixed"


def test_sentences_of_errors_from_elsewhere() -> None:
    import torch

    worker = (
        "Caught ValueError in DataLoader worker process 0.\n"
        "Original Traceback (most recent call last):\n  ...\nValueError: bad.wav is empty"
    )
    assert sentence(ValueError(worker)) == "bad.wav is empty"
    assert sentence(torch.OutOfMemoryError("CUDA out of memory. Tried to ...")) == OUT_OF_MEMORY
    assert (
        sentence(OSError(28, "No space left on device", "last.ckpt"))
        == "No space left on device: last.ckpt"
    )


@pytest.mark.parametrize(
    "line", [["--help"], ["--cfg", "job"], ["--cfg", "job", "trainer.overfit_batches=1"]]
)
def test_the_flags_of_hydra_work(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(SystemExit):
        training.main(line)
    said = capsys.readouterr().out
    assert "group_size: 4" in said
    assert ("python train.py gpus=[0]" in said) == ("--help" in line)


def test_a_sweep_runs_one_after_another(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    monkeypatch.setattr(
        training, "run", lambda cfg, folder, given: rates.append((cfg.optim.lr, folder.name))
    )
    training.main(["-m", "optim.lr=1e-4,2e-4", f"hydra.sweep.dir={tmp_path}", *tiny])
    assert rates == [(1e-4, "0"), (2e-4, "1")]


def test_with_init_from_the_arguments_of_any_model_are_settings() -> None:
    cfg = settings.compose(["init_from=htdemucs", "model.t_dropout=0.1"])  # HTDemucs alone has it
    assert cfg.model.t_dropout == 0.1
    for line in (["model.t_dropout=0.1"], ["init_from=htdemucs", "model.t_drop=0.1"]):
        with pytest.raises(ValueError, match=r"model\.t_drop(out)? is no setting"):
            settings.compose(line)


@pytest.mark.parametrize("call", ["CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"])
def test_a_full_gpu_is_told_whatever_notices_it(
    call: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), explained():
        raise RuntimeError(f"CUDA error: {call} when calling `create(handle)`")
    assert capsys.readouterr().err == f"error: {OUT_OF_MEMORY}\n"


def test_the_memory_of_the_machine_is_told_in_gigabytes(capsys: pytest.CaptureFixture[str]) -> None:
    words = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes."
    with pytest.raises(SystemExit), explained():
        raise RuntimeError(words)
    assert capsys.readouterr().err == f"error: {OUT_OF_MEMORY} It asked for 4.3 GB more.\n"
