import math
from fractions import Fraction

import pytest
import scipy.signal
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from demucs_lightning.repitch import change_speed, repitch, stretch

RATE = 22050
SECONDS = 4
WINDOW = 2048
LENGTH = int(0.88 * SECONDS * RATE)


def tone(frequency, seconds=SECONDS):
    return torch.sin(2 * math.pi * frequency * torch.arange(int(seconds * RATE)) / RATE)


def pitch_of(audio):
    middle = audio[RATE // 2 : RATE // 2 + 2 * RATE]
    spectrum = torch.fft.rfft(middle * torch.hann_window(len(middle)), n=2**19).abs()
    return spectrum.argmax().item() * RATE / 2**19


@pytest.mark.parametrize("pitch", [-12, -2, -1, 0, 1, 2, 7])
@pytest.mark.parametrize("tempo", [-12.0, 0.0, 5.3, 12.0])
def test_tone_moves_by_the_semitones_and_keeps_its_level(pitch, tempo):
    audio = torch.stack([tone(440), 0.5 * tone(440)])[None]
    out = repitch(audio, [pitch], [tempo], length=LENGTH, window=WINDOW)
    assert out.shape == (1, 2, LENGTH)
    for channel in out[0]:
        assert pitch_of(channel) == pytest.approx(440 * 2 ** (pitch / 12), rel=2e-3)
    level = out[0, :, RATE // 2 : -RATE].square().mean(-1).mul(2).sqrt()
    torch.testing.assert_close(level, torch.tensor([1.0, 0.5]), rtol=0.01, atol=0)
    torch.testing.assert_close(out[0, 1], out[0, 0] / 2)  # channels stay together


@pytest.mark.parametrize("pitch", [-2, 0, 2])
@pytest.mark.parametrize("tempo", [-12.0, 8.0, 12.0])
def test_drum_hits_follow_the_tempo_and_stay_single(pitch, tempo):
    every = RATE // 4
    hit = torch.exp(-torch.arange(every) / 200) * torch.randn(
        every, generator=torch.Generator().manual_seed(0)
    )
    out = repitch(
        hit.repeat(4 * SECONDS)[None, None], [pitch], [tempo], length=LENGTH, window=WINDOW
    )[0, 0]
    envelope = out.square().unfold(0, 64, 32).mean(-1)
    peaks = scipy.signal.find_peaks(
        envelope.numpy(), height=0.3 * float(envelope.max()), distance=20
    )[0]
    gaps = torch.tensor(peaks).diff() * 32 / every
    assert gaps.float().mean().item() == pytest.approx(1 / (1 + tempo / 100), rel=0.01)
    assert gaps.std() < 0.05  # within 12 ms; a doubled or lost hit would be off by far more


def test_nothing_to_change_is_the_identity():
    audio = torch.randn(2, 2, 3 * RATE, generator=torch.Generator().manual_seed(0))
    out = repitch(audio, [0, 0], [0.0, 0.0], length=2 * RATE, window=WINDOW)
    torch.testing.assert_close(out, audio[..., : 2 * RATE], atol=1e-6, rtol=0)


def test_rows_are_independent():
    audio = torch.randn(3, 2, RATE, generator=torch.Generator().manual_seed(0))
    pitch, tempo = [0, 2, -1], [3.0, -12.0, 12.0]
    together = repitch(audio, pitch, tempo, length=RATE // 2, window=WINDOW)
    for row in range(3):
        alone = repitch(
            audio[row : row + 1], pitch[row : row + 1], tempo[row : row + 1],
            length=RATE // 2, window=WINDOW,
        )  # fmt: skip
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=0)


def test_noise_keeps_its_energy():
    audio = torch.randn(1, 2, 3 * RATE, generator=torch.Generator().manual_seed(0))
    for rate in [0.8, 1.25]:
        out = stretch(audio, torch.tensor([rate]), length=2 * RATE, window=WINDOW)
        assert out[..., RATE // 2 :].std().item() == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("audio", [torch.zeros(1, 2, RATE), torch.ones(1, 1, 10)])
def test_silence_and_very_short_audio(audio):
    length = int(0.88 * audio.shape[-1])
    out = repitch(audio, [2], [-12.0], length=length, window=WINDOW)
    assert out.shape == (*audio.shape[:2], length)
    assert out.isfinite().all()
    assert (out.abs().max() > 0) == (audio.abs().max() > 0)


@pytest.mark.parametrize("ratio", [Fraction(2, 3), Fraction(84, 89), Fraction(55, 49), Fraction(2)])
def test_change_of_speed_against_exact_tones(ratio):
    frequencies = torch.tensor([30.0, 441.0, 3000.0], dtype=torch.float64)
    time = torch.arange(RATE).double() / RATE
    audio = torch.sin(2 * math.pi * frequencies[:, None] * time)
    out = change_speed(audio, ratio)
    assert out.shape == (3, math.ceil(RATE / ratio))
    time = torch.arange(out.shape[-1]).double() * float(ratio) / RATE
    exact = torch.sin(2 * math.pi * frequencies[:, None] * time)
    middle = slice(200, -200)
    torch.testing.assert_close(out[:, middle], exact[:, middle], atol=2e-3, rtol=0)


def test_speeding_up_does_not_alias():
    high = torch.sin(2 * math.pi * 8500 * torch.arange(RATE).double() / RATE)
    assert change_speed(high, Fraction(3, 2))[200:-200].abs().max() < 2e-3


class Kernels(TorchDispatchMode):
    """Names of what computes or copies."""

    VIEWS = {"view", "slice", "select", "transpose", "unsqueeze", "squeeze", "alias", "unbind"}
    VIEWS |= {"as_strided", "unfold", "_conj", "t", "detach", "expand", "permute", "unsafe_view"}

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if (name := func.overloadpacket.__name__) not in self.VIEWS:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_a_window_costs_few_kernels():
    audio = torch.randn(2, 2, RATE, generator=torch.Generator().manual_seed(0))
    counts = []
    for length in (WINDOW, 6 * WINDOW):  # 10 windows more
        with Kernels() as kernels:
            stretch(audio, torch.tensor([0.9, 1.1]), length=length, window=WINDOW)
        counts.append(len(kernels.names))
    assert counts[1] - counts[0] <= 10 * 18


def test_the_kernels_of_a_speed_are_made_once_for_each_type():
    audio, ratio = torch.randn(2, 1000), Fraction(44, 37)
    expected = change_speed(audio, ratio)
    with Kernels() as kernels:
        again = change_speed(audio, ratio)
        change_speed(audio.double(), Fraction(53, 50))
    assert torch.equal(again, expected)
    assert kernels.names.count("sinc") == 1  # of the new ratio
    assert change_speed(audio.double(), ratio).dtype == torch.float64
