"""The keyword ``memory`` says how a model is trained: no file of demucs has it."""

from pathlib import Path

import pytest
import torch

from demucs_lightning.models import Demucs
from demucs_lightning.pretrained import official, tensors
from demucs_lightning.pretrained.checkpoints import check_same_model, describe
from demucs_lightning.pretrained.package import Package, build
from demucs_lightning.pretrained.reference import Description, interpreted

TINY = {"sources": ["voice", "rest"], "channels": 4, "depth": 1}


def _package() -> Package:
    state = Demucs(**TINY).state_dict()
    return Package("Demucs", {**TINY, "memory": "low"}, state, "here.ckpt")


@pytest.mark.parametrize(("kind", "suffix"), [(official, "th"), (tensors, "safetensors")])
def test_files_of_demucs_do_not_say_it(tmp_path: Path, kind, suffix: str) -> None:
    path = tmp_path / f"model.{suffix}"
    kind.write(_package(), path)
    read = kind.read(path)
    assert "memory" not in read.kwargs
    assert build(read).memory == "fast"


def test_files_of_demucs_may_not_say_it() -> None:
    state = {name: torch.zeros_like(value) for name, value in _package().state.items()}
    description = Description("demucs.demucs.Demucs", [], {**TINY, "memory": "low"})
    with pytest.raises(ValueError, match=r"x\.th has memory, which is no argument of Demucs"):
        interpreted(description, state, "x.th")


def test_a_run_goes_on_with_another_memory() -> None:
    klass = "demucs_lightning.models.Demucs"
    found, wanted = (describe(klass, {**TINY, "memory": m}) for m in ("fast", "low"))
    check_same_model("x.ckpt", {"demucs_lightning": found}, wanted)
    wanted["kwargs"]["depth"] = 2
    with pytest.raises(ValueError, match="depth=1"):
        check_same_model("x.ckpt", {"demucs_lightning": found}, wanted)
