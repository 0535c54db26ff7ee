from contextlib import nullcontext
from typing import Any, cast

import pytest
import torch

from demucs_lightning import Demucs, HDemucs, HTDemucs, Separator
from demucs_lightning.separation import BagOfModels, Recorded
from demucs_lightning.separator import described
from demucs_lightning.separator.hardware import computing, devices_of, placed, precision_of
from tests.separator.models import RATE, Shares, noise, small

CPU = torch.device("cpu")


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9 - device.index, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU X")


def test_devices_of_a_machine_with_gpus(two_gpus):
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    assert devices_of("auto") == devices_of("cuda") == [first]
    assert devices_of("cuda:1") == devices_of(torch.device("cuda:1")) == [second]
    assert devices_of("cuda:0,cuda:1") == devices_of(["cuda:0", second]) == [first, second]
    assert devices_of("cpu") == [CPU]
    with pytest.raises(ValueError, match="cuda:2: this machine has 2 CUDA devices"):
        devices_of("cuda:2")
    assert described([first, second]) == "2 x GPU X"


def test_devices_of_a_machine_without(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert devices_of("auto") == [CPU]
    assert described([CPU]) == "CPU (1 thread)"
    for name in ("cuda", "cuda:0", "mps"):
        with pytest.raises(ValueError, match=f"device is {name}: this machine has no"):
            devices_of(name)


def test_precision(two_gpus):
    assert precision_of("auto", torch.device("cuda", 0)) == "bf16"
    assert precision_of("auto", CPU) == "fp32"
    assert precision_of("bf16", CPU) == "bf16"
    assert precision_of("fp16", torch.device("cuda", 0)) == "fp16"
    with pytest.raises(ValueError, match="fp16, which is for CUDA"):
        precision_of("fp16", CPU)
    other = Shares()
    assert computing(other, CPU, "fp32") is computing(small(), CPU, "bf16") is nullcontext
    with computing(other, CPU, "bf16")():
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("capability", "precision"), [((8, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "fp32")]
)
def test_precision_of_older_gpus(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision_of("auto", torch.device("cuda", 0)) == precision


def test_networks_of_this_package_are_recorded_on_a_gpu(monkeypatch):
    class Far:
        """A device that all weights are on already."""

        type = "cuda"

        def __eq__(self, other):
            return True

        def __hash__(self):
            return 0

    model, everywhere = small(), cast(Any, [Far()])
    for given in (model, BagOfModels([model, small()]).eval()):
        there = placed(given, everywhere, precision="fp32", keep=True)
        (first, *_) = there.models if isinstance(there, BagOfModels) else [there]
        assert isinstance(first, Recorded)
        assert first.network is model
        assert first.valid_length(1234) == model.valid_length(1234)
    other = Shares()
    assert placed(other.eval(), everywhere, precision="fp32", keep=True) is other


@pytest.mark.parametrize("kind", [Demucs, HDemucs, HTDemucs])
def test_fp16_is_close(kind):
    torch.manual_seed(0)
    model = kind(["a", "b"], channels=8, samplerate=RATE, segment=1)
    mixture = noise()[None, :, :RATE]
    with torch.no_grad():
        full = model.eval()(mixture)
        error = (model.half()(mixture) - full).norm() / full.norm()
    assert 1e-5 < error < 0.01


def test_a_model_of_ones_own_is_moved_itself():
    model = small().train()
    assert placed(model, [CPU], precision="fp32", keep=False) is model
    assert not model.training


def test_bf16_is_the_precision_of_the_networks_own_weights():
    model = small().eval()
    lowered = placed(model, [CPU], precision="bf16", keep=True)
    assert {weights.dtype for weights in lowered.parameters()} == {torch.bfloat16}
    assert {weights.dtype for weights in model.parameters()} == {torch.float32}
    bag = placed(BagOfModels([small(), small()]), [CPU], precision="bf16", keep=False)
    assert {weights.dtype for weights in bag.parameters()} == {torch.bfloat16}
    other = Shares()
    assert placed(other, [CPU], precision="bf16", keep=False) is other

    mixture = noise()
    full, half = (
        Separator(model, precision=precision, shifts=0).separate(mixture, RATE)["vocals"]
        for precision in ("fp32", "bf16")
    )
    assert 1e-6 < (full - half).norm() / full.norm() < 0.05
    assert half.dtype == torch.float32
