import logging

import pytest
import torch

from demucs_lightning.separation import BagOfModels, Recorded, fitting_batch, recorded, separate
from demucs_lightning.separation.memory import Need
from demucs_lightning.separation.recorded import MOST
from tests.separation.standins import Placed, noise


class Recorder:
    """Stands for the recording of a graph: runs the network, and keeps what was asked of it."""

    def __init__(self, error=None):
        self.error, self.shapes, self.replayed = error, [], []

    def __call__(self, network, mixture):
        self.shapes.append(tuple(mixture.shape))
        if self.error is not None:
            raise self.error
        expected = mixture.shape

        def replay(batch):
            assert batch.shape == expected
            self.replayed.append(tuple(batch.shape))
            return network(batch)

        return replay


def run(model, *lengths):
    with torch.no_grad():
        return [model(noise(1, 2, length, seed=number)) for number, length in enumerate(lengths)]


def test_a_shape_is_recorded_when_it_comes_again():
    recorder = Recorder()
    given = run(Recorded(Placed(), recorder), 100, 90, 100, 100, 80)
    assert recorder.shapes == [(1, 2, 100)]
    assert recorder.replayed == [(1, 2, 100)] * 2
    for estimates, expected in zip(given, run(Placed(), 100, 90, 100, 100, 80), strict=True):
        assert torch.equal(estimates, expected)


def test_recordings_are_few():
    recorder = Recorder()
    run(Recorded(Placed(), recorder), *[10, 20, 30, 40] * 3)
    assert recorder.shapes == [(1, 2, 10), (1, 2, 20)]
    assert len(recorder.shapes) == MOST


@pytest.mark.parametrize("kind", [RuntimeError, torch.OutOfMemoryError])
def test_what_cannot_be_recorded_runs_as_usual_and_that_is_said_once(caplog, kind):
    recorder = Recorder(kind("operation not permitted\nwhen a stream is capturing"))
    with caplog.at_level(logging.WARNING):
        given = run(Recorded(Placed(), recorder), *[10, 20] * 4)
    assert recorder.shapes == [(1, 2, 10)]
    assert torch.equal(given[-1], run(Placed(), *[10, 20] * 4)[-1])
    assert [record.getMessage() for record in caplog.records] == [
        "The network runs without a CUDA graph, somewhat slower: operation not permitted"
    ]


def test_recordings_go_before_the_batch_gets_smaller():
    class Full(Placed):
        tight = False

        def forward(self, mixture):
            if self.tight:
                self.tight = False
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().forward(mixture)

    recorder = Recorder()
    model = Recorded(Full(), recorder)
    run(model, 10, 10, 10)
    model.network.tight = True
    assert torch.equal(run(model, 20)[0], run(Placed(), 20)[0])
    model.network.tight = True
    with pytest.raises(torch.OutOfMemoryError):  # nothing was recorded: the batch must shrink
        run(model, 30)


def test_gradients_go_through_the_network_itself():
    recorder = Recorder()
    model, mixture = Recorded(Placed(), recorder), noise(1, 2, 10).requires_grad_()
    for _ in range(3):
        assert model(mixture).requires_grad
    assert recorder.shapes == []


def test_separation_replays_its_whole_chunks():
    recorder, mixture = Recorder(), noise(1, 2, 777)
    model = recorded(BagOfModels([Placed(), Placed(segment=0.3)], [[1, 2, 3], [3, 2, 1]]), recorder)
    expected = separate(
        BagOfModels([Placed(), Placed(segment=0.3)], [[1, 2, 3], [3, 2, 1]]), mixture
    )
    assert torch.equal(separate(model, mixture), expected)
    assert set(recorder.shapes) == {(1, 2, 100), (1, 2, 300)}
    assert len(recorder.replayed) > 8


def test_a_batch_is_found_once():
    asked = []

    def measure(model, chunk):
        asked.append((type(model), chunk))
        return Need(100, 1000)

    model = Recorded(Placed(), Recorder())
    for chunk in (10_000, 10_000, 60_000):
        fitting_batch(model, chunk, measure=measure)
    assert asked == [(Placed, 10_000), (Placed, 60_000)]  # the network, not a replay of it


def test_short_memory_shortens_the_segments_of_the_network_itself(caplog):
    class Hungry(Placed):
        def forward(self, mixture):
            if mixture.shape[-1] > 2500:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return mixture[:, None].expand(-1, 3, -1, -1)

    model, mixture = Recorded(Hungry(segment=4.0), Recorder()), noise(1, 2, 9000)
    with caplog.at_level(logging.WARNING):
        estimates = separate(model, mixture)
    torch.testing.assert_close(estimates[:, 0], mixture)
    assert "segments of 2.0 s" in caplog.text
