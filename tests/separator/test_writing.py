"""What goes on at the same time: decoding, conversion and encoding in threads, beside the model."""

import threading

import numpy as np
import pytest
import soundfile
import torch

from demucs_lightning import Separator, audio
from demucs_lightning.audio import decoding, wav
from demucs_lightning.separator import Target, flow
from tests.separator.models import FOUR, RATE, Shares, noise


def waiting(happened: threading.Event, after: int) -> Shares:
    """A model that waits, after so many calls, until something else has happened."""

    class Waiting(Shares):
        def forward(self, mixture):
            if self.calls == after:
                assert happened.wait(timeout=20)
            return super().forward(mixture)

    return Waiting()


def song(path, samples, rate=RATE):
    audio.write(path, samples.clamp(-1, 1), samplerate=rate)
    return path


@pytest.mark.parametrize("target", [Target(), Target(subtype="FLOAT"), Target(clip_mode="none")])
def test_what_is_done_is_encoded_while_the_model_computes(tmp_path, monkeypatch, target):
    happened, threads = threading.Event(), set()
    write = wav.WavFile.write

    def noted(self, block):
        write(self, block)
        threads.add(threading.get_ident())
        happened.set()

    monkeypatch.setattr(wav.WavFile, "write", noted)
    path = tmp_path / "x.wav"
    samples = noise(2, 40 * RATE)
    with audio.writer(path, samplerate=RATE, channels=2) as to:
        to.write(samples.clamp(-1, 1))
    happened.clear()
    threads.clear()
    model = waiting(happened, after=30)  # of 40 s in chunks of 0.75 s
    Separator(model, device="cpu", shifts=0, batch_size=1).separate_to(
        path, tmp_path / "out", target=target
    )
    assert threading.get_ident() not in threads


def test_what_comes_next_is_decoded_while_the_model_computes(tmp_path, monkeypatch):
    happened, blocks, main = threading.Event(), [], threading.get_ident()
    read = decoding._soundfile_blocks

    def noted(path, size):
        for block in read(path, size):
            blocks.append(threading.get_ident())
            if len(blocks) == 5 + 2:  # the first reading has 5; the second is ahead of the model
                happened.set()
            yield block

    monkeypatch.setattr(decoding, "_soundfile_blocks", noted)
    path = song(tmp_path / "x.wav", noise(2, 40 * RATE))
    model = waiting(happened, after=0)
    Separator(model, device="cpu", shifts=0, batch_size=1).separate(path)
    assert len(blocks) == 10
    assert main not in blocks[5:]


def test_rates_are_converted_while_the_model_computes(tmp_path, monkeypatch):
    threads = set()
    convert = flow.Conversion.__call__

    def noted(self, block):
        threads.add(threading.get_ident())
        return convert(self, block)

    monkeypatch.setattr(flow.Conversion, "__call__", noted)
    path = song(tmp_path / "x.wav", noise(2, 40_000), rate=11_025)
    Separator(Shares(), device="cpu").separate(path)
    assert threads
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("at", [0, 5])
@pytest.mark.parametrize("form", ["wav", "flac"])
def test_a_peak_is_no_matter_where(tmp_path, at, form):
    """What was encoded before it is encoded again, with the gain of all."""
    samples = noise(2, 6 * audio.BLOCK, loud=0.05)
    samples[0, at * audio.BLOCK + 99] = 0.9
    path = tmp_path / "x.wav"
    with audio.writer(path, samplerate=RATE, channels=2) as to:
        to.write(samples)
    gains = (3.0, 0.5, 0.25, 0.125)
    separator = Separator(Shares(gains), device="cpu", shifts=0)
    report = separator.separate_to(path, tmp_path / "out", target=Target(format=form))
    assert report.gain == pytest.approx(1 / (1.01 * 2.7), abs=1e-3)
    assert {file.name for file in (tmp_path / "out/x").iterdir()} == {f"{n}.{form}" for n in FOUR}
    for gain, file in zip(gains, report.files.values(), strict=True):
        found = audio.read(file)[0]
        assert found.shape == samples.shape
        assert (found - report.gain * gain * samples).abs().max() < 1e-3


def test_an_encoder_that_fails_ends_it(tmp_path, monkeypatch):
    write, count = wav.WavFile.write, []

    def broken(self, block):
        count.append(1)
        if len(count) == 6:
            raise OSError(28, "No space left on device")
        write(self, block)

    path = song(tmp_path / "x.wav", noise(2, 6 * audio.BLOCK))
    monkeypatch.setattr(wav.WavFile, "write", broken)
    model = Shares()
    with pytest.raises(OSError, match=r"can't be written \(No space left on device\)"):
        Separator(model, device="cpu").separate_to(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert model.calls < 60, "what is left is not computed"


def test_files_are_the_same_as_of_what_is_in_memory(tmp_path):
    """In the order of the blocks, whatever is done at once."""
    samples = torch.linspace(-0.9, 0.9, 5 * audio.BLOCK + 77).repeat(2, 1)
    path = tmp_path / "x.wav"
    with audio.writer(path, samplerate=RATE, channels=2) as to:
        to.write(samples)
    separator = Separator(Shares(), device="cpu", shifts=0)
    expected = separator.separate(path)
    for name, file in separator.separate_to(path, tmp_path / "out").files.items():
        found = soundfile.read(file, dtype="int16")[0].T
        wanted = (expected[name].double() * 2**15).round().numpy()
        assert np.abs(found - wanted).max() <= 1
