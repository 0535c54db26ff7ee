"""What makes a run fast and changes nothing else: precision, compiling, never waiting."""

import logging
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode

from demucs_lightning.callbacks import Recall
from demucs_lightning.commands import hardware, settings, speed
from demucs_lightning.commands import train as training
from demucs_lightning.compiled import Compiled, inductor
from demucs_lightning.training import LitSeparator
from tests.scale.test_launch import TORCHRUN

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")
PAIR = ("auto", "bf16")
SMALL = ["model=Demucs", "model.depth=2", "model.resample=false", "segment=2", "logger=csv"]


@pytest.fixture
def overrides(tiny: list[str]) -> list[str]:
    return [*SMALL, *tiny, "trainer.limit_test_batches=0"]


def run(overrides: list[str], folder: Path) -> LitSeparator:
    return training.run(settings.compose(overrides), folder)


def with_bf16(monkeypatch: pytest.MonkeyPatch, *, cpu: bool, gpu: bool | None = None) -> None:
    """A CPU, and a GPU if it is not None, with or without bf16."""
    for unit in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(f"torch.cpu.{unit}", lambda: cpu)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu is not None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: int(gpu is not None))
    properties = SimpleNamespace(major=9 if gpu else 7)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: properties)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: "Old Card")


@pytest.mark.parametrize(
    ("cpu", "gpu", "expected"),
    [
        (True, None, "bf16"),
        (False, None, "32"),
        (False, True, "bf16"),
        (True, False, "32"),
    ],
)
def test_auto_is_bf16_where_the_device_has_it(
    cpu: bool, gpu: bool | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_bf16(monkeypatch, cpu=cpu, gpu=gpu)
    cfg = settings.compose([])
    assert cfg.trainer.precision == "auto"
    assert speed.settled(cfg, {}).trainer.precision == expected
    assert cfg.trainer.precision == "auto"
    assert hardware.precision("auto", "mps") == "32-true"


def test_a_cpu_says_that_it_has_no_fp16(caplog: pytest.LogCaptureFixture) -> None:
    cfg = settings.compose(["gpus=0", "trainer.precision=16"])
    assert speed.settled(cfg, {}).trainer.precision == "bf16"
    assert caplog.messages == [
        "trainer.precision=16: a CPU has no mixed fp16 and takes bf16 instead."
    ]


def test_bf16_on_a_gpu_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with_bf16(monkeypatch, cpu=True, gpu=False)
    with pytest.raises(ValueError, match="bf16', but GPU 0, Old Card, does not compute in bf16"):
        hardware.precision("bf16", "gpu")
    assert hardware.precision("bf16", "cpu") == "bf16-mixed"
    assert hardware.precision("16", "gpu") == "16-mixed"


@pytest.mark.parametrize(
    ("gpus", "without"),
    [("1", None), ("[1,2]", 2), ("[0,1]", None), ("3", 2), ("[2]", 2), ("[2,3]", 2), ("[3]", 3)],
)
def test_of_unlike_cards_those_in_use_are_asked(
    gpus: str, without: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two have bf16."""
    with_bf16(monkeypatch, cpu=True, gpu=True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: f"Card {index}")
    monkeypatch.setattr(
        "torch.cuda.get_device_properties", lambda index: SimpleNamespace(major=9 - index)
    )
    auto, bf16 = (settings.compose([f"gpus={gpus}", f"trainer.precision={p}"]) for p in PAIR)
    assert speed.settled(auto, {}).trainer.precision == ("bf16" if without is None else "32")
    if without is None:
        assert speed.settled(bf16, {}).trainer.precision == "bf16"
    else:
        with pytest.raises(ValueError, match=f"GPU {without}, Card {without}, does not compute in"):
            speed.settled(bf16, {})


def test_a_launcher_s_processes_use_a_card_each(monkeypatch: pytest.MonkeyPatch) -> None:
    with_bf16(monkeypatch, cpu=True, gpu=True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr(
        "torch.cuda.get_device_properties", lambda index: SimpleNamespace(major=9 - index)
    )
    cfg = settings.compose([])
    for key, value in {**TORCHRUN, "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    assert speed.settled(cfg, {}).trainer.precision == "bf16"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert speed.settled(cfg, {}).trainer.precision == "32"


@pytest.mark.parametrize(
    ("given", "had", "expected"),
    [
        ("auto", "bf16-mixed", "bf16"),
        ("auto", "32-true", "32"),
        ("auto", None, "32"),  # of a version that only had 32 as its default
        ("bf16", "32-true", "bf16"),
    ],
)
def test_a_resumed_run_keeps_its_precision(
    given: str, had: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_bf16(monkeypatch, cpu=True)
    saved = {"epoch": 3, "demucs_lightning": {"precision": had} if had else {}}
    cfg = settings.compose([f"trainer.precision={given}"])
    assert speed.settled(cfg, saved).trainer.precision == expected


def test_settings_and_the_first_line_say_what_auto_was(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    with_bf16(monkeypatch, cpu=True)
    caplog.set_level(logging.INFO)
    run([*overrides, "trainer.precision=auto", "epochs=1"], tmp_path)
    assert OmegaConf.load(tmp_path / "settings.yaml").trainer.precision == "bf16"
    assert any(" · bf16-mixed · Demucs" in line for line in caplog.messages)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["demucs_lightning"]["precision"] == "bf16-mixed"
    with_bf16(monkeypatch, cpu=False)
    line = [*overrides, "trainer.precision=auto", f"resume_checkpoint={tmp_path}/last.ckpt"]
    run(line, tmp_path / "on")
    assert OmegaConf.load(tmp_path / "on" / "settings.yaml").trainer.precision == "bf16"


def test_what_compile_may_be() -> None:
    model = torch.nn.Linear(1, 1)
    assert speed.compiled(model, settings.compose([])) is None
    for word, kind in (("true", "true"), ("True", "true"), ("cudagraphs", "cudagraphs")):
        call = speed.compiled(model, settings.compose([f"compile={word}"]))
        assert isinstance(call, Compiled)
        assert call.kind == kind


def test_tf32_is_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("torch.set_float32_matmul_precision", asked.append)
    speed.allow_tf32("cpu")
    assert asked == []
    speed.allow_tf32("gpu")
    assert asked == ["high"]


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def module(*line: str) -> Any:
    cfg = settings.compose([*SMALL, "model.channels=4", "samplerate=4000", *line])
    torch.manual_seed(0)
    built: Any = training.build_module(cfg, {})
    built._trainer = SimpleNamespace(
        current_epoch=0, global_rank=0, world_size=1, precision="32-true"
    )
    built.log = built.log_dict = lambda *_, **__: None
    return built


@pytest.mark.parametrize(
    "line", [[], ["augment.remix.pool=2"], ["svd.penalty=1", "svd.min_size=0"]]
)
def test_the_host_waits_for_nothing_within_a_step(line: list[str]) -> None:
    lit = module(*line)
    optimizer = lit.optim.optimizer(lit.model)
    batch = {"stems": torch.randn(4, 4, 2, 8000), "track": ["a"] * 4}
    for number in range(3):
        with Operations() as operations, torch.autocast("cpu", dtype=torch.bfloat16):
            loss = lit.training_step(batch, number)
        with operations:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert operations.seen["_fused_adam_"] == 1
        assert operations.seen["convolution"] + operations.seen["convolution_overrideable"] > 0
        assert not [name for name in operations.seen if name in WAITS]


def test_a_wait_would_be_noticed() -> None:
    with Operations() as operations:
        bool(torch.ones(()) > 0)
        torch.ones(3).nonzero()
    assert {"_local_scalar_dense", "nonzero"} <= operations.seen.keys()


def test_compiling_changes_no_name_and_no_result(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def build(model: Any, kind: str) -> Any:
        calls.append(Compiled(model, kind, make=partial(inductor, backend="eager")))
        return calls[-1]

    monkeypatch.setattr(speed, "Compiled", build)
    plain = run(overrides, tmp_path / "plain")
    compiled = run([*overrides, "compile=true"], tmp_path / "compiled")
    assert len(calls) == 1
    assert calls[0].tried
    saved = [
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("plain", "compiled")
    ]
    assert saved[0].keys() == saved[1].keys()
    # Rounding differs a little: some products of the compiled network go another way.
    first, second = plain.model.state_dict(), compiled.model.state_dict()
    apart = sum(float((first[name] - second[name]).square().sum()) for name in first)
    size = sum(float(value.square().sum()) for value in first.values())
    assert apart < 1e-12 * size


def test_a_compile_that_fails_ends_as_the_run_without(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("there is no compiler")

    make = partial(inductor, backend=backend)
    monkeypatch.setattr(speed, "Compiled", lambda model, kind: Compiled(model, kind, make=make))
    plain = run(overrides, tmp_path / "plain")
    compiled = run([*overrides, "compile=true"], tmp_path / "compiled")
    assert "compile=true has no effect: there is no compiler" in caplog.messages
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, compiled.model.state_dict()[name])


def test_the_pool_is_filled_with_what_came_before(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every step the pool holds the augmented examples before the next one, of one epoch."""
    held: dict[Any, Any] = {}
    plain = LitSeparator.training_step

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        loss = plain(self, batch, batch_idx)
        held[self.current_epoch, batch_idx] = self.augment.pool.recent.clone()
        return loss

    monkeypatch.setattr(LitSeparator, "training_step", step)
    line = ["batch_size=1", "augment.remix.pool=2", "trainer.limit_train_batches=4"]
    lit: Any = run([*overrides, *line], tmp_path)
    assert [len(held[1, index]) for index in range(4)] == [1, 2, 2, 2]
    assert torch.equal(held[1, 2][1:], held[1, 3][:1])
    pool, epoch = lit.augment.pool, lit.trainer.fit_loop.epoch_progress
    monkeypatch.setattr(epoch.current, "processed", 1)
    monkeypatch.setattr(type(lit.trainer), "current_epoch", property(lambda self: 1))
    pool.forget()
    pool.position = None
    Recall().on_train_batch_start(lit.trainer, lit, {"stems": torch.zeros(1, 4, 2, 5)}, 3)
    assert torch.equal(pool.recent, held[1, 2])
    assert pool.position == (1, 4)


def test_augmentation_stays_exact_under_autocast() -> None:
    lit = module()
    batch = {"stems": torch.randn(4, 4, 2, 8000), "track": ["a"] * 4}
    exact = lit.augmented(batch, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lit.augmented(batch, 0), exact)
