"""Scores in pieces against those of whole tensors, and museval's."""

import math

import numpy as np
import pytest
import torch

from demucs_lightning.evaluation import scoring
from demucs_lightning.evaluation.scoring import DEFINITIONS, score
from demucs_lightning.metrics import bss_eval, new_sdr, si_sdr
from tests.metrics.references import museval, music, recording, separated

RATE = 4000


def scored(references, estimates, rate=RATE):
    def read(start, stop):
        return references[..., start:stop], estimates[..., start:stop]

    names = [f"s{number}" for number in range(len(references))]
    return score(read, references.shape[-1], samplerate=rate, sources=names)


@pytest.mark.parametrize("piece", [1000, 2**17])
def test_scores_are_those_of_whole_tensors(monkeypatch, piece):
    monkeypatch.setattr(scoring, "PIECE", piece)
    references = music(2, 1, 3 * RATE + 500).float()
    estimates = separated(references).float()
    found = scored(references, estimates)
    wide = references[None].double(), estimates[None].double()
    windows = bss_eval(references, estimates, window=RATE)
    for number, row in enumerate(found.values()):
        assert row.nsdr == pytest.approx(new_sdr(*wide)[0, number].item(), abs=1e-9)
        assert row.si_sdr == pytest.approx(si_sdr(*wide)[0, number].item(), abs=1e-9)
        for name in ("sdr", "isr", "sir", "sar"):
            assert getattr(row, name) == getattr(windows, name)[number].tolist()
        assert len(row.sdr) == 3
        assert not row.silent


def test_scores_of_a_real_recording_are_musevals():
    references = recording()[:2, :1, : 3 * 44100]
    estimates = separated(references)
    found = scored(references, estimates, 44100)
    expected = museval(references, estimates, window=44100, hop=44100, taps=512)
    for metric, values in zip(("sdr", "isr", "sir", "sar"), expected, strict=True):
        for row, windows in zip(found.values(), values, strict=True):
            assert getattr(row, metric) == pytest.approx(windows, abs=0.01)
            assert row.score(metric) == pytest.approx(np.nanmedian(windows), abs=0.01)


def test_a_silent_reference_has_no_score_and_takes_the_windows_of_others():
    references = music(2, 1, 3 * RATE).float()
    estimates = separated(references).float()
    references[0] = 0
    silent, other = scored(references, estimates).values()
    assert silent.silent
    assert math.isnan(silent.nsdr)
    assert math.isnan(silent.si_sdr)
    assert not other.silent
    assert other.nsdr == pytest.approx(new_sdr(references[None], estimates[None])[0, 1].item())
    assert all(math.isnan(value) for row in (silent, other) for value in row.sdr)
    with pytest.raises(ValueError, match="silent"):  # where museval has nothing at all
        museval(references, estimates, window=RATE, hop=RATE, taps=16)


def test_a_silent_window_is_left_out():
    references = music(2, 1, 3 * RATE).float()
    references[0, :, RATE : 2 * RATE] = 0
    estimates = separated(references).float()
    first, second = scored(references, estimates).values()
    assert [math.isnan(value) for value in first.sdr] == [False, True, False]
    assert [math.isnan(value) for value in second.sir] == [False, True, False]
    assert first.score("sdr") == pytest.approx((first.sdr[0] + first.sdr[2]) / 2)
    assert math.isfinite(first.nsdr)


def test_a_perfect_and_an_empty_estimate():
    references = music(2, 1, 2 * RATE).float()
    estimates = torch.stack([references[0], torch.zeros_like(references[1])])
    perfect, empty = scored(references, estimates).values()
    assert perfect.nsdr > 60
    assert perfect.si_sdr > 100
    assert empty.nsdr == 0
    assert math.isnan(empty.si_sdr)


def test_definitions_name_every_metric_in_full():
    assert "1e-7" in DEFINITIONS["nsdr"]
    for name in ("sdr", "isr", "sir", "sar"):
        assert "BSS Eval v4" in DEFINITIONS[name]
        assert "median over its windows" in DEFINITIONS[name]
