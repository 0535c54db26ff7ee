"""Extracts against a plain loop over soundfile that follows the published rules literally."""

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader, default_collate

from demucs_lightning import audio
from demucs_lightning.data import Extracts, collate, normalized
from demucs_lightning.data.cache import AUDIO_CACHE
from demucs_lightning.data.tracks import find_tracks, index_tracks

SOURCES = ("drums", "bass", "other", "vocals")
RATE = 8000


def extracts(folder: Path, sources=SOURCES, *, samplerate: int = RATE, **settings) -> Extracts:
    tracks = index_tracks(folder, find_tracks(folder), sources)
    return Extracts(tracks, sources, samplerate=samplerate, **settings)


def plain_loop(track: Path, segment: float, shift: float) -> list[np.ndarray]:
    """Every extract (S, C, T) of a track at its own rate, normalised by its mixture."""
    frames = soundfile.info(track / "drums.wav").frames
    mono = soundfile.read(track / "mixture.wav")[0].mean(1)
    count = 1
    if frames / RATE >= segment:
        count = math.ceil((frames / RATE - segment) / shift) + 1
    found = []
    for number in range(count):
        start, length = int(RATE * shift * number), math.ceil(RATE * segment)
        stems = np.zeros((len(SOURCES), 2, int(segment * RATE)))
        for stem, source in zip(stems, SOURCES, strict=True):
            with soundfile.SoundFile(track / f"{source}.wav") as file:
                file.seek(min(start, file.frames))
                part = file.read(length)[: stem.shape[1]].T
            stem[:, : part.shape[1]] = (part - mono.mean()) / mono.std(ddof=1)
        found.append(stems)
    return found


@pytest.mark.parametrize(
    ("segment", "shift"), [(1, None), (1.0, 0.3), (0.77777, 0.21111), (0.9, 2.1)]
)
def test_extracts_are_those_of_a_plain_loop(tmp_path, song, segment, shift):
    lengths = {"a": 20000, "b": 6000, "c": 8000, "d": 31111}
    for name, frames in lengths.items():
        song(tmp_path / name, (*SOURCES, "mixture"), frames=frames)
    dataset = extracts(tmp_path, segment=segment, shift=shift)
    assert not (tmp_path / AUDIO_CACHE).exists()
    expected = [
        (name, stems)
        for name in lengths
        for stems in plain_loop(tmp_path / name, segment, shift or segment)
    ]
    assert len(dataset) == len(expected)
    for number, (name, stems) in enumerate(expected):
        item = dataset[number]
        assert item["track"] == name
        assert item["stems"].dtype == torch.int16
        assert item["stems"].shape == (4, 2, int(segment * RATE))
        np.testing.assert_allclose(normalized(item).numpy(), stems, atol=2e-6)
    assert torch.equal(dataset[-1]["stems"], dataset[len(dataset) - 1]["stems"])
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@pytest.mark.parametrize(
    ("seconds", "segment", "shift", "count"),
    [
        (10, 4, 2, 4),
        (10, 4, 2.5, 4),
        (10, 10, 1, 1),
        (10, 11, 1, 1),
        (10.5, 10, 1, 2),
        (240, 11, 1, 230),
    ],
)
def test_number_of_extracts(tmp_path, song, seconds, segment, shift, count):
    song(tmp_path / "a", ["drums"], frames=int(seconds * 100), rate=100)
    song(tmp_path / "long", ["drums"], frames=1200, rate=100)
    dataset = extracts(tmp_path, ["drums"], segment=segment, shift=shift, samplerate=100)
    whole = 1 if segment > 12 else math.ceil((12 - segment) / shift) + 1
    assert len(dataset) == count + whole


def test_a_segment_longer_than_every_track(tmp_path, song):
    song(tmp_path / "short")
    song(tmp_path / "longest", frames=6000)
    assert len(extracts(tmp_path, segment=0.75)) == 2
    with pytest.raises(ValueError, match=r"segment=0\.8 .* the longest, 'longest', has 0\.75 sec"):
        extracts(tmp_path, segment=0.8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"segment": 0}, "segment must be more than 0"),
        ({"segment": 0.1, "shift": -1}, "shift must be more than 0"),
    ],
)
def test_wrong_settings(tmp_path, song, settings, message):
    song(tmp_path / "a")
    with pytest.raises(ValueError, match=message):
        extracts(tmp_path, **settings)
    with pytest.raises(ValueError, match="different names"):
        extracts(tmp_path, ["bass", "bass"])
    with pytest.raises(ValueError, match="at least one track"):
        Extracts([], ["bass"])


def test_not_normalising(tmp_path, song):
    song(tmp_path / "a")
    item = extracts(tmp_path, segment=0.25, normalize=False)[0]
    assert torch.equal(normalized(item), item["stems"] / 2**15)
    assert (item["mean"], item["std"]) == (0, 1)
    drums = soundfile.read(tmp_path / "a" / "drums.wav", dtype="int16")[0]
    np.testing.assert_array_equal(item["stems"][0].T, drums[: RATE // 4])


@pytest.mark.parametrize(("rate", "channels"), [(11025, 1), (4000, 2), (8000, 1)])
def test_other_rates_and_channels(tmp_path, song, rate, channels):
    song(tmp_path / "a", frames=2 * rate, rate=rate, channels=channels)
    dataset = extracts(tmp_path, segment=0.5, shift=0.3)
    assert len(dataset) == 6
    drums = audio.convert_channels(audio.read(tmp_path / "a" / "drums.wav")[0], 2)
    drums = audio.resample(drums, old=rate, new=RATE)
    for number in range(6):
        start = round(int(rate * 0.3 * number) * RATE / rate)
        item = dataset[number]
        expected = torch.zeros(2, RATE // 2)
        part = drums[:, start : start + RATE // 2]
        expected[:, : part.shape[1]] = part
        found = item["stems"][0] / (1 if item["stems"].dtype == torch.float32 else 2**15)
        assert torch.equal(found, expected)


def test_one_dtype_for_all_stems(tmp_path, song):
    song(tmp_path / "a")
    song(tmp_path / "a", ["bass"], subtype="FLOAT")
    song(tmp_path / "b")
    dataset = extracts(tmp_path, segment=0.5)
    assert dataset.dtype == torch.float32
    for item, name in ((dataset[0], "a"), (dataset[1], "b")):
        for stem, source in zip(item["stems"], SOURCES, strict=True):
            expected = audio.read(tmp_path / name / f"{source}.wav")[0]
            assert torch.equal(stem, expected)


def test_missing_stems_are_silent(tmp_path, song):
    song(tmp_path / "a", ["drums", "vocals"])
    song(tmp_path / "b", ["bass"], subtype="FLOAT")
    song(tmp_path / "c", frames=6000)
    dataset = extracts(tmp_path, ["drums", "bass"], segment=0.6)
    first, second = dataset[0]["stems"], dataset[1]["stems"]
    assert first[0, :, :4000].any()
    assert not first[1].any()
    assert not second[0].any()
    assert second[1, :, :4000].any()
    assert not second[1, :, 4000:].any()


@pytest.mark.parametrize("mixture", [True, False])
def test_whole_tracks(tmp_path, song, mixture):
    song(tmp_path / "a", (*SOURCES, "mixture") if mixture else SOURCES)
    song(tmp_path / "b", (*SOURCES, "mixture"), frames=5001)
    dataset = extracts(tmp_path)
    assert len(dataset) == 2
    assert dataset[1]["stems"].shape == (4, 2, 5001)
    item = dataset[0]
    stems = torch.stack([audio.read(tmp_path / "a" / f"{source}.wav")[0] for source in SOURCES])
    assert torch.equal(item["stems"], stems)
    if mixture:
        assert torch.equal(item["mixture"], audio.read(tmp_path / "a" / "mixture.wav")[0])
    else:
        assert torch.allclose(item["mixture"], stems.sum(0), atol=1e-6)
    assert item["mixture"].is_contiguous()
    assert item["std"] == dataset.tracks[0].std


def test_whole_tracks_are_as_long_as_their_shortest_lossy_stem(tmp_path, song):
    song(tmp_path / "a", ["drums"], frames=44100, rate=44100, subtype=None, suffix=".ogg")
    song(tmp_path / "a", ["bass"], frames=42000, rate=44100, subtype=None, suffix=".ogg")
    item = extracts(tmp_path, ["drums", "bass"], samplerate=44100)[0]
    assert item["stems"].shape == (2, 2, 42000)
    assert torch.equal(item["mixture"], item["stems"].sum(0))


def test_a_changed_original_is_converted_anew(tmp_path, song):
    song(tmp_path / "a", rate=4000)
    before = extracts(tmp_path, segment=0.5)[0]["stems"]
    song(tmp_path / "a", rate=4000, frames=4004)
    after = extracts(tmp_path, segment=0.5)[0]["stems"]
    assert not torch.equal(before, after)
    assert len(list((tmp_path / AUDIO_CACHE).rglob("*.wav"))) == len(SOURCES)


def test_a_data_set_crosses_to_another_process(tmp_path, song):
    song(tmp_path / "a", (*SOURCES, "mixture"))
    dataset = extracts(tmp_path, segment=0.1, shift=0.05)
    expected = [dataset[number] for number in range(len(dataset))]
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 5000, "maps stay behind"
    for item, wanted in zip(pickle.loads(pickled), expected, strict=False):
        assert torch.equal(item["stems"], wanted["stems"])


def test_batches(tmp_path, song):
    song(tmp_path / "a", (*SOURCES, "mixture"))
    song(tmp_path / "b", (*SOURCES, "mixture"), frames=5000)
    dataset = extracts(tmp_path, segment=0.25)
    items = [dataset[number] for number in range(len(dataset))]
    (batch,) = DataLoader(dataset, batch_size=len(dataset), collate_fn=collate, num_workers=1)
    plain = default_collate(items)
    assert batch["stems"].shape == (5, 4, 2, 2000)
    assert batch["stems"].transpose(2, 3).is_contiguous(), "still interleaved as in the files"
    assert torch.equal(batch["stems"], plain["stems"])
    assert batch["track"] == ["a", "a", "b", "b", "b"]
    assert torch.equal(batch["mean"], plain["mean"])
    found = normalized(batch)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert torch.equal(found, torch.stack([normalized(item) for item in items]))
