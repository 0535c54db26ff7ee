from contextlib import nullcontext

import pytest
import torch

from demucs_lightning.separator import described
from demucs_lightning.separator.hardware import computing, devices_of, placed, precision_of
from tests.separator.models import small

CPU = torch.device("cpu")


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
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
    assert described([CPU]) == "CPU (1 threads)"
    for name in ("cuda", "cuda:0", "mps"):
        with pytest.raises(ValueError, match=f"device is {name}: this machine has no"):
            devices_of(name)


def test_precision(two_gpus):
    assert precision_of("auto", torch.device("cuda", 0)) == "bf16"
    assert precision_of("auto", CPU) == "fp32"
    assert precision_of("bf16", CPU) == "bf16"
    assert computing(CPU, "fp32") is nullcontext
    with computing(CPU, "bf16")():
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert torch.is_autocast_enabled("cpu")


def test_a_model_of_ones_own_is_moved_itself():
    model = small().train()
    assert placed(model, [CPU], keep=False) is model
    assert not model.training
