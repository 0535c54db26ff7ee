import pytest
import torch

from demucs_lightning.separation.buffers import Incoming, Outgoing
from demucs_lightning.separation.chunks import Chunks, Fade, Pass
from tests.separation.standins import SOURCES, Identity, noise, stems_of


class Spy(Identity):
    """Keeps what it is given."""

    def forward(self, mixture):
        self.seen = [chunk[0].tolist() for chunk in mixture]
        return super().forward(mixture)


def ten():
    return Incoming([torch.arange(1.0, 11).expand(1, 2, 10)])


def test_margins_are_the_audio_around_a_chunk():
    model = Spy(extra=5)
    estimates = Chunks(model, 2).separate(ten(), [0, 4, 8], 2)
    left, middle, right = model.seen
    assert left == [0, 0, 1, 2, 3, 4, 5]  # two before, three after
    assert middle == [3, 4, 5, 6, 7, 8, 9]
    assert right == [7, 8, 9, 10, 0, 0, 0]
    assert [estimate[0, 0, 0].tolist() for estimate in estimates] == [[1, 2], [5, 6], [9, 10]]


def test_the_last_chunk_is_widened_to_the_length_that_training_set():
    model = Spy(segment=0.006, fixed=True)
    (estimate,) = Chunks(model, 4).separate(ten(), [9], 1)
    assert model.seen == [[9, 10, 0, 0]]
    assert estimate[0, 0, 0].tolist() == [10]


def test_only_the_stems_that_are_asked_for_come_back():
    class Numbered(Identity):
        def forward(self, mixture):
            return stems_of(mixture) * torch.arange(3)[:, None, None]

    (estimate,) = Chunks(Numbered(), 2, stems=[2, 0]).separate(ten(), [0], 2)
    assert estimate[0, :, 0].tolist() == [[2, 4], [0, 0]]


def test_chunks_cross_fade_in_a_triangle():
    fade = Fade(4, 2)  # 1 2 2 1 every two samples
    thirds = [fade.weights(number, torch.zeros(4)) * 3 for number in range(3)]
    torch.testing.assert_close(thirds[0], torch.tensor([3.0, 3, 2, 1]))
    torch.testing.assert_close(thirds[1], torch.tensor([1.0, 2, 2, 1]))
    torch.testing.assert_close(thirds[2], thirds[1])
    torch.testing.assert_close(fade.weights(7, torch.zeros(1)), thirds[1][:1] / 3)


@pytest.mark.parametrize("chunk", [1, 2, 7, 10])
@pytest.mark.parametrize("stride", [1, 2, 3, 7, 10])
def test_fades_sum_up_to_one_everywhere(chunk, stride):
    if stride > chunk:
        return
    fade, length = Fade(chunk, stride), 53
    sums = torch.zeros(length)
    for number, start in enumerate(range(0, length, stride)):
        part = sums[start : start + chunk]
        part += fade.weights(number, part)
    torch.testing.assert_close(sums, torch.ones(length))


def test_chunks_are_batched_and_short_ones_go_alone():
    model, mixture, stems = Identity(), Incoming([noise(2, 2, 350)]), Outgoing()
    run = Pass(Chunks(model, 100), Fade(100, 75), stride=75, batch_size=2, shares=[1.0] * 3)
    places = []
    while mixture.reach(run.at + 1):
        places.append(run.at)
        run.advance(mixture, stems)
    assert places == [0, 150, 300]
    assert model.sizes == [(4, 2, 100), (4, 2, 100), (2, 2, 50)]
    assert stems.take(350).shape == (2, len(SOURCES), 2, 350)


@pytest.mark.parametrize("model", [Identity(16, 3), Identity(64, 50), Identity(fixed=True)])
def test_no_more_is_needed_than_what_a_pass_says(model):
    for length in (350, 301, 399):
        mixture, stems = Incoming(noise(1, 2, length).split(9, dim=-1)), Outgoing()
        run = Pass(Chunks(model, 100), Fade(100, 30), stride=30, delay=13, shares=[1.0] * 3)
        while mixture.reach(run.at + 1):
            run.advance(mixture, stems)  # an assertion fails where it asks for what was forgotten
            mixture.forget(run.needs)
        assert mixture.end - mixture.begin <= 100
