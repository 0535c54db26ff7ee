"""Of a track some of whose stems are there, only the members of a bag run that serve the others."""

from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from demucs_lightning import Separator, audio
from demucs_lightning.separation import BagOfModels
from demucs_lightning.separator import Target
from demucs_lightning.separator.choice import Choice, Parts
from tests.audio.sounds import tones
from tests.separator.models import FOUR, RATE, Shares

SKIP: dict[str, Any] = {"existing": "skip"}


def specialists(gains=(0.5, 0.25, 0.125, 0.0625)) -> BagOfModels:
    """A member for each stem, as of htdemucs_ft."""
    return BagOfModels([Shares(gains) for _ in FOUR], torch.eye(4).tolist()).eval()


def ran(bag: BagOfModels) -> list[str]:
    return [name for name, member in zip(FOUR, bag.models, strict=True) if member.calls]


def again(tmp_path, gone, bag, target, **choice) -> list[str]:
    """Which members run where some of the files are gone, which come back as they were."""
    path = tmp_path / "x.wav"
    audio.write(path, tones(2, 20_000, RATE), samplerate=RATE)
    separator = Separator(bag, device="cpu", shifts=0)
    first = separator.separate_to(path, tmp_path, target=Target(**target), **choice)
    before = {file: file.read_bytes() for file in first.files.values()}
    for name in gone:
        first.files[name].unlink()
    for member in bag.models:
        member.calls = 0
    report = separator.separate_to(path, tmp_path, target=Target(**target, **SKIP), **choice)
    assert {*report.kept} == {*first.files} - {*gone}
    assert report.gain == first.gain
    assert before == {file: file.read_bytes() for file in report.files.values()}
    return ran(bag)


@pytest.mark.parametrize(
    "target",
    [{}, {"subtype": "FLOAT"}, {"format": "flac"}, {"clip_mode": "clamp"}, {"format": "ogg"}],
)
def test_members_for_what_is_there_do_not_run(tmp_path, target):
    gone = ["bass", "vocals"]
    assert again(tmp_path, gone, specialists(), target) == gone


def test_where_the_missing_stem_clips_its_own_gain_is_that_of_all(tmp_path):
    bag = specialists((0.5, 4.0, 0.5, 0.5))
    assert again(tmp_path, ["bass"], bag, {}) == ["bass"]


@pytest.mark.parametrize("form", ["wav", "mp3"])
def test_where_the_gain_may_come_from_what_is_there_all_run(tmp_path, form):
    bag = specialists((4.0, 0.5, 0.5, 0.5))
    assert again(tmp_path, ["bass"], bag, {"format": form}) == FOUR


def test_stems_that_sum_up_exactly_need_all(tmp_path):
    assert again(tmp_path, ["bass"], specialists(), {}, exact_sum=True) == FOUR


@pytest.mark.parametrize(
    ("method", "gone", "runs"),
    [
        ("add", "vocals", ["vocals"]),
        ("add", "no_vocals", FOUR[:3]),
        ("minus", "vocals", ["vocals"]),
        ("minus", "minus_vocals", ["vocals"]),
    ],
)
def test_one_stem_or_the_rest(tmp_path, method, gone, runs):
    choice = {"two_stems": "vocals", "other_method": method}
    assert again(tmp_path, [gone], specialists(), {}, **choice) == runs


def test_what_is_there_and_damaged_decides_nothing(tmp_path, caplog):
    bag = specialists((4.0, 0.5, 0.5, 0.5))
    path = tmp_path / "x.wav"
    audio.write(path, tones(2, 20_000, RATE), samplerate=RATE)
    (tmp_path / "x").mkdir()
    damaged = np.full((20_000, 2), np.nan)
    soundfile.write(tmp_path / "x/drums.wav", damaged, RATE, subtype="FLOAT")
    separator = Separator(bag, device="cpu", shifts=0)
    report = separator.separate_to(path, tmp_path, target=Target(**SKIP))
    assert ran(bag) == FOUR
    assert report.gain < 1
    assert f"{tmp_path / 'x/drums.wav'} holds NaN" in caplog.text


def test_parts_know_what_they_are_made_of():
    parts = Parts(Choice(), Shares()).only(["other"])
    assert (parts.names, parts.stems) == (["other"], ["other"])
    stems = torch.arange(4 * 2 * 3).reshape(4, 2, 3).float()
    rest = Parts(Choice(two_stems="bass"), Shares()).only(["no_bass"])
    assert (rest.names, rest.stems) == (["no_bass"], ["drums", "other", "vocals"])
    assert torch.equal(rest.made(stems[[0, 2, 3]], None)[0], stems[[0, 2, 3]].sum(0))
