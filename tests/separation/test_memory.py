import logging
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from demucs_lightning.separation import BagOfModels, Replicas, fitting_batch, separate, stream
from demucs_lightning.separation.memory import Need, is_memory
from tests.separation.standins import Identity, Placed, noise, stems_of

ROOT = Path(__file__).parents[2]


def need(used, free):
    return lambda model, chunk: Need(used, free)


@pytest.mark.parametrize(
    ("used", "free", "chunk", "batch"),
    [
        (100, 1000, 10_000, 8),  # the share of the memory that is used
        (100, 100, 10_000, 1),
        (300, 10**6, 10_000, 12),  # two minutes of audio
        (0, 10**6, 60_000, 2),
        (1, 10**6, 600_000, 1),
    ],
)
def test_a_batch_fits_the_free_memory(used, free, chunk, batch):
    assert fitting_batch(Identity(), chunk, measure=need(used, free)) == batch


def test_a_batch_is_one_chunk_where_nothing_is_known():
    assert fitting_batch(Identity(), 100) == 1
    assert fitting_batch(torch.nn.Linear(2, 2), 100) == 1
    model = Identity()
    separate(model, noise(1, 2, 500), batch_size=None)
    assert {size[0] for size in model.sizes} == {1}


class Recurrent(Identity):
    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(1, 1)


def test_a_cpu_takes_two_short_chunks_through_an_lstm():
    assert fitting_batch(Recurrent(), 10_000) == 2
    assert fitting_batch(Recurrent(), 10_001) == 1
    assert fitting_batch(Placed(), 10_000) == 1
    model, mixture = Recurrent(), noise(1, 2, 777)
    torch.testing.assert_close(separate(model, mixture, batch_size=None), stems_of(mixture))
    assert {size[0] for size in model.sizes} == {1, 2}


def test_each_device_has_its_batch():
    replicas = Replicas(Identity(), ["cpu", "cpu", "cpu"])
    assert fitting_batch(replicas, 10_000, measure=need(100, 500)) == 12


LACKING = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB.")
OF_LIBRARIES = [  # and of the machine
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuFFT error: CUFFT_ALLOC_FAILED",
    "CUDA error: out of memory",
    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
]


class Hungry(Placed):
    """Out of memory above so many samples at once."""

    def __init__(self, most, *, error=LACKING, **settings):
        super().__init__(**settings)
        self.most, self.error, self.tried = most, error, []

    def forward(self, mixture):
        self.tried.append((len(mixture), mixture.shape[-1]))
        if len(mixture) * mixture.shape[-1] > self.most:
            raise self.error
        return super().forward(mixture)


@pytest.mark.parametrize("error", [LACKING, *map(RuntimeError, OF_LIBRARIES)])
def test_out_of_memory_makes_smaller_batches_with_the_same_result(caplog, error):
    model, mixture = Hungry(250, error=error), noise(1, 2, 2000)
    with caplog.at_level(logging.WARNING):
        estimates = separate(model, mixture, batch_size=8)
    assert torch.equal(estimates, separate(Placed(), mixture))
    assert [r.getMessage() for r in caplog.records] == [
        "The device is out of memory: going on with a batch of 4.",
        "The device is out of memory: going on with a batch of 2.",
    ]
    assert [n for n, _ in model.tried[:7]] == [8, 4, 2, 2, 2, 2, 2]  # it fails once for each


@pytest.mark.parametrize("fixed", [False, True])
def test_out_of_memory_makes_shorter_segments_in_the_end(caplog, fixed):
    class Hungrier(Hungry):
        def forward(self, mixture):
            super().forward(mixture)
            return stems_of(mixture)

    model, mixture = Hungrier(1500, segment=4.0, fixed=fixed), noise(1, 2, 9000)
    with caplog.at_level(logging.WARNING):
        estimates = separate(model, mixture, batch_size=2)
    torch.testing.assert_close(estimates, stems_of(mixture), atol=1e-5, rtol=1e-5)
    assert [r.getMessage().split("with ")[1] for r in caplog.records] == [
        "a batch of 1.",
        "segments of 2.0 s.",
        "segments of 1.0 s.",
    ]
    assert model.segment == 4.0


def test_out_of_memory_for_good_is_said():
    with pytest.raises(torch.OutOfMemoryError, match="7 GiB"):
        separate(Hungry(500, segment=4.0), noise(1, 2, 9000), batch_size=2)


@pytest.mark.parametrize("error", [RuntimeError("a wrong shape"), ValueError("ALLOC_FAILED")])
def test_another_error_is_no_lack_of_memory(error, caplog):
    assert not is_memory(error)
    with pytest.raises(type(error), match=str(error)):
        separate(Hungry(250, error=error), noise(1, 2, 2000), batch_size=8)
    assert not caplog.records


def test_a_bag_that_streams_makes_do_too():
    mixture = noise(2, 3000)
    bag = BagOfModels([Hungry(250), Placed(segment=0.3)])
    parts = list(stream(bag, mixture.split(70, dim=-1), batch_size=4, shifts=2))
    plain = BagOfModels([Placed(), Placed(segment=0.3)])
    expected = separate(plain, mixture[None], shifts=2)[0]
    torch.testing.assert_close(torch.cat(parts, dim=-1), expected)


def test_memory_does_not_grow_with_the_length():
    # 30 minutes of stereo are 605 MiB, and their two stems as much each.
    program = """
        import math
        import torch
        from demucs_lightning.separation import stream
        from tests.memory import peak

        class Model(torch.nn.Module):
            sources, audio_channels, samplerate = ["a", "b"], 2, 44100
            segment, max_segment = 5.0, math.inf
            def valid_length(self, length):
                return length + 441
            def forward(self, mixture):
                return torch.stack([mixture] * 2, dim=1)

        def used():
            return peak() // 1024

        def minutes(count):
            for second in range(60 * count):
                yield torch.full((2, 44100), second / 1800)

        before, total, error = used(), 0, 0.0
        for part in stream(Model(), minutes(30)):
            second = torch.arange(total, total + part.shape[-1]) // 44100
            error = max(error, (part[1, 1] - second / 1800).abs().max().item())
            total += part.shape[-1]
        print(total / 44100, error < 1e-5, used() - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, exact, grown = done.stdout.split()
    assert (float(seconds), exact) == (1800, "True")
    assert int(grown) < 200, f"{grown} MiB"
