"""Where memory ran out: only what would help, the greatest saving first."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from demucs_lightning.commands import advice, settings
from demucs_lightning.commands import train as training
from demucs_lightning.models.recompute import MEMORY
from demucs_lightning.moments import STATES
from tests.models.test_recompute import saved_bytes

WAY = re.compile(r"([a-z][^()]*?) \(about ([\d,]+) MB less\)")
TRY = "try, by estimate, "
ONE = ["batch_size=1", "augment.remix.group_size=1"]


def ways(*line: str, experiment: str | None = None) -> list[str]:
    said = advice.out_of_memory(settings.compose(["trainer.precision=32", *line]), experiment)
    beginning, _, listed = said.partition(": ")
    assert beginning.startswith("The device ran out of memory with batch_size=")
    if listed == f"{advice.NONE}.":
        return []
    assert listed.startswith(TRY)
    assert listed.endswith(" less).")
    found = WAY.findall(listed.removeprefix(TRY))
    saved = [float(size.replace(",", "")) for _, size in found]
    assert saved == sorted(saved, reverse=True)
    assert 0 < len(found) <= 4
    return [way for way, _ in found]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            [],
            ["experiment=low_memory", "memory=low", "trainer.precision=bf16", "memory=balanced"],
        ),
        (
            ["memory=balanced", "trainer.precision=bf16", "data_augmentation=false"],
            ["experiment=low_memory", "memory=low", "batch_size=2", "segment=6"],
        ),
        (
            [*ONE, "memory=low", "trainer.precision=bf16"],
            ["optim.state=8bit", "optim.state=bf16", "segment=6"],
        ),
        (  # whose weights are a third of HDemucs's
            ["memory=low", "trainer.precision=bf16", "model=HTDemucs"],
            ["experiment=low_memory", "segment=6", "batch_size=2 augment.remix.group_size=2"]
            + ["optim.state=8bit"],
        ),
        (
            ["memory=low", "trainer.precision=bf16"],
            ["experiment=low_memory", "optim.state=8bit", "optim.state=bf16", "segment=6"],
        ),
        (
            [*ONE, "memory=low", "segment=6", "optim.state=bf16"],
            ["optim.state=8bit", "trainer.precision=bf16"],
        ),
        ([*ONE, "memory=low", "segment=6", "optim.state=8bit", "trainer.precision=bf16"], []),
        (["segment=4", *ONE, "memory=low", "optim.state=8bit", "trainer.precision=bf16"], []),
    ],
)
def test_only_what_would_help_and_the_most_first(line: list[str], expected: list[str]) -> None:
    assert ways(*line) == expected


def test_an_overlay_that_is_in_force_is_not_advised() -> None:
    overlay = "experiment=low_memory"
    assert overlay not in ways(overlay)
    assert ways(overlay, "trainer.precision=bf16")[0] == "optim.state=8bit"
    # What the command line says goes before it: to ask for it again would change nothing.
    line = [overlay, "batch_size=4", "augment.remix.group_size=4"]
    assert overlay not in ways(*line, experiment="low_memory")
    assert "memory=low" not in ways(*line, experiment="low_memory")


def test_the_overlay_sets_what_is_said_of_it() -> None:
    cfg = OmegaConf.load(settings.conf_folder() / "experiment" / "low_memory.yaml")
    assert {key: OmegaConf.select(cfg, key) for key in advice.LOW_MEMORY} == advice.LOW_MEMORY
    assert all(tuple(kept) == MEMORY for _, kept in advice.KEPT.values())
    assert tuple(advice.STATES) == STATES


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("bits", [16, 32])
def test_the_estimate_is_what_the_network_keeps(memory: str, bits: int) -> None:
    line = ["model=HDemucs", "model.channels=12", f"memory={memory}", "samplerate=22050"]
    cfg = settings.compose(line)
    model = instantiate(cfg.model, _convert_="all")
    with torch.autocast("cpu", torch.bfloat16, enabled=bits == 16):
        counted = saved_bytes(model, torch.randn(1, 2, 2 * 22050)) / 1e6
    network = advice._network(cfg)
    assert network.weights == sum(value.numel() for value in model.parameters()) / 1e6
    need = advice.Need(network, batch=1, seconds=2.0, bits=bits, memory=memory, state="fp32")
    constant = 16 * network.weights
    assert need.megabytes() - constant == pytest.approx(counted, rel=0.35)


def test_savings_are_those_of_the_model_at_hand() -> None:
    wide, narrow, other = (
        advice.out_of_memory(settings.compose(["trainer.precision=32", *line]))
        for line in ([], ["model.channels=24"], ["model=Demucs"])
    )
    assert " memory=low (about 6,400 MB less), " in wide  # 4 x 10 s
    assert " memory=low (about 3,200 MB less), " in narrow
    assert " memory=low (about 7,000 MB less), " in other


def test_a_class_that_can_not_be_built_without_memory_is_estimated_all_the_same() -> None:
    cfg = settings.compose(["trainer.precision=32"])
    cfg.model._target_ = "tests.test_advice.Odd"
    said = advice.out_of_memory(cfg)
    assert "memory=low (about 6,400 MB less)" in said


class Odd(torch.nn.Module):
    def __init__(self, **_: Any) -> None:
        super().__init__()
        torch.ones(1).item()  # needs numbers


def test_more_of_anything_takes_more() -> None:
    network = advice.Network(advice.KEPT["Demucs"][1], scale=1.0, weights=134.0)
    need = advice.Need(network, batch=2, seconds=5, bits=32, memory="balanced", state="bf16")
    least = need.megabytes()
    changes: list[dict[str, Any]] = [{"batch": 3}, {"seconds": 6}, {"bits": 64}, {"state": "fp32"}]
    for more in [*changes, {"memory": "fast"}]:
        assert advice.replace(need, **more).megabytes() > least
    assert advice.replace(need, shares=2).megabytes() < least


def on_gpus(monkeypatch: pytest.MonkeyPatch, count: int, *, bf16: bool = True) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: "A GPU")
    properties = SimpleNamespace(major=8 if bf16 else 7)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: properties)


def test_several_gpus_divide_a_model_where_the_settings_allow_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_gpus(monkeypatch, 4)
    least = [*ONE, "memory=low", "trainer.precision=bf16"]
    assert ways(*least)[0] == "trainer.strategy=fsdp gpus=4"
    assert ways(*least, "gpus=4")[0] == "trainer.strategy=fsdp"
    for line in ("optim.state=bf16", "compile=true", "svd.penalty=1e-5", "trainer.precision=16"):
        assert not [way for way in ways(*least, line) if "fsdp" in way]
    sharded = ways("trainer.strategy=fsdp", "gpus=4")
    assert not [way for way in sharded if "fsdp" in way or "optim" in way or "experiment" in way]
    on_gpus(monkeypatch, 1)
    assert not [way for way in ways() if "fsdp" in way]


def test_bf16_is_for_devices_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpus(monkeypatch, 1, bf16=False)
    assert "trainer.precision=16" in ways("trainer.precision=auto")
    assert not [way for way in ways("trainer.precision=16") if "precision" in way]
    on_gpus(monkeypatch, 1)
    assert not [way for way in ways("trainer.precision=auto") if "precision" in way]


def test_a_model_that_recomputes_nothing_gets_no_such_advice() -> None:
    cfg = settings.compose(["trainer.precision=32"])
    OmegaConf.set_struct(cfg, False)
    del cfg.model["memory"]
    assert " memory=" not in advice.out_of_memory(cfg)


def test_a_run_that_is_continued_keeps_the_form_of_its_state() -> None:
    found = ways("resume_checkpoint=last.ckpt")
    assert found[0] == "memory=low"
    assert not [way for way in found if "optim" in way or "experiment" in way]


def test_a_run_that_starts_from_a_file_is_told_of_the_model_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = settings.compose(["trainer.precision=32"])
    used = settings.compose(["trainer.precision=32", "model=Demucs"])
    runtime = SimpleNamespace(output_dir=str(tmp_path), choices={})
    monkeypatch.setattr(training.HydraConfig, "get", lambda: SimpleNamespace(runtime=runtime))
    assert training.less_memory(asked) == advice.out_of_memory(asked)
    training.save_settings(used, tmp_path / "settings.yaml")
    assert training.less_memory(asked) == advice.out_of_memory(used) != advice.out_of_memory(asked)
