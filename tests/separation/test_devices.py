import pytest
import torch

from demucs_lightning.separation import BagOfModels, Replicas, on_devices, separate
from tests.separation.standins import Placed, noise


class Linear(Placed):
    def __init__(self, gain=1.0, **settings):
        super().__init__(**settings)
        self.gain = torch.nn.Parameter(torch.tensor(gain))

    def forward(self, mixture):
        assert not torch.is_grad_enabled()
        return super().forward(mixture @ torch.eye(mixture.shape[-1]).to(self.gain)) * self.gain


def test_replicas_separate_like_the_model():
    model, mixture = Linear(), noise(2, 2, 777)
    replicas = Replicas(model, ["cpu", torch.device("cpu")])
    expected = separate(model, mixture, batch_size=4)
    assert torch.equal(separate(replicas, mixture, batch_size=4), expected)
    torch.testing.assert_close(separate(replicas, mixture), expected)


def test_chunks_are_dealt_out_in_order():
    replicas = Replicas(Linear(), ["cpu", "cpu"])
    separate(replicas, noise(1, 2, 600), overlap=0, batch_size=3)
    assert replicas.replicas[0].sizes == [(2, 2, 100), (2, 2, 100)]
    assert replicas.replicas[1].sizes == [(1, 2, 100), (1, 2, 100)]


def test_the_model_is_left_alone():
    model = Linear()
    replicas = Replicas(model, ["cpu", "cpu"])
    assert len({id(p) for p in [model.gain, *replicas.parameters()]}) == 3
    separate(replicas, noise(1, 2, 300))
    assert model.sizes == []


def test_a_bag_on_devices():
    bag = BagOfModels([Linear(1.0), Linear(3.0)], [[1, 0, 1], [1, 2, 3]], segment=0.2)
    mixture = noise(1, 2, 777)
    spread = on_devices(bag, ["cpu", "cpu"])
    assert [model.segment for model in spread.models] == [0.2, 0.2]
    assert torch.equal(
        separate(spread, mixture, batch_size=2), separate(bag, mixture, batch_size=2)
    )


def test_autocast_reaches_the_threads():
    mixture, replicas = noise(1, 2, 300), Replicas(Linear(), ["cpu", "cpu"])
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (separate(m, mixture, batch_size=4) for m in (replicas, Linear()))
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
    exact = separate(Linear(), mixture)
    assert 1e-3 < (found - exact).abs().max() / exact.abs().max() < 2e-2


def test_a_failure_in_a_thread_is_told():
    class Failing(Linear):
        def forward(self, mixture):
            raise torch.OutOfMemoryError("no")

    with pytest.raises(torch.OutOfMemoryError):
        separate(Replicas(Failing(), ["cpu", "cpu"]), noise(1, 2, 300), batch_size=2)


def test_no_devices():
    with pytest.raises(ValueError, match="devices is empty"):
        Replicas(Linear(), [])
