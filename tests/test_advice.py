"""Where memory ran out: only what would help, the greatest saving first."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from demucs_lightning.commands import advice, settings
from demucs_lightning.models.recompute import MEMORY
from demucs_lightning.moments import STATES

ONE = ["batch_size=1", "augment.remix.group_size=1"]


def ways(*line: str, experiment: str | None = None) -> list[str]:
    said = advice.out_of_memory(settings.compose(["trainer.precision=32", *line]), experiment)
    beginning, _, listed = said.partition(": ")
    assert beginning.startswith("The device ran out of memory with batch_size=")
    if listed == f"{advice.NONE}.":
        return []
    assert listed.startswith("try ")
    assert listed.endswith(".")
    return listed[4:-1].split(", ")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            [],
            ["experiment=low_memory", "memory=low", "trainer.precision=bf16", "memory=balanced"]
            + ["batch_size=2 augment.remix.group_size=2", "segment=6 (augmentation leaves 5 s)"]
            + ["optim.state=8bit", "optim.state=bf16"],
        ),
        (
            ["memory=balanced", "trainer.precision=bf16", "data_augmentation=false"],
            ["experiment=low_memory", "memory=low", "batch_size=2", "segment=6"]
            + ["optim.state=8bit", "optim.state=bf16"],
        ),
        (
            [*ONE, "memory=low", "trainer.precision=bf16"],
            ["optim.state=8bit", "optim.state=bf16", "segment=6 (augmentation leaves 5 s)"],
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
    assert tuple(advice.KEPT) == MEMORY
    assert tuple(advice.STATES) == STATES


def test_more_of_anything_takes_more() -> None:
    need = advice.Need(batch=2, seconds=5, bits=32, memory="balanced", state="bf16")
    least = need.megabytes()
    changes: list[dict[str, Any]] = [{"batch": 3}, {"seconds": 6}, {"bits": 64}, {"state": "fp32"}]
    for more in [*changes, {"memory": "fast"}]:
        assert advice.replace(need, **more).megabytes() > least
    assert advice.replace(need, shares=2).megabytes() < least


def on_gpus(monkeypatch: pytest.MonkeyPatch, count: int, *, bf16: bool = True) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: "A GPU")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: bf16)


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
