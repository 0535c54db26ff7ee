"""Evaluations: the right numbers, nothing twice, and what is wrong is said."""

import json
import math
import os
import re
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from demucs_lightning.data.tracks import Track
from demucs_lightning.evaluation import signals
from demucs_lightning.evaluation.estimates import Settings, Stems
from demucs_lightning.evaluation.results import (
    WINDOWED,
    excerpt_folder,
    read_results,
    track_path,
)
from demucs_lightning.evaluation.run import Evaluation
from demucs_lightning.evaluation.settled import usual_folder
from demucs_lightning.evaluation.table import aggregate, as_json, table
from demucs_lightning.evaluation.tracks import open_set
from demucs_lightning.metrics import new_sdr, si_sdr
from tests.evaluation.songs import (
    SOURCES,
    Notes,
    make_set,
    make_stems,
    read,
    shares,
    stems,
    write,
)
from tests.metrics.references import museval
from tests.separator.models import RATE


@pytest.fixture
def root(tmp_path):
    return make_set(tmp_path / "songs")


@pytest.fixture
def data(root):
    return open_set("folder", root, subset=None)


def run(folder, judged, data, tracks=None, **options):
    notes = Notes()
    evaluation = Evaluation(folder, [judged], data, **options)
    outcome = evaluation.run(data.only(tracks) if tracks else data, notes)
    return outcome, notes


def test_scores_are_those_of_the_estimates(root, data, tmp_path):
    folder = make_stems(tmp_path / "stems", root)
    outcome, notes = run(tmp_path / "out", Stems(folder), data)
    assert outcome.complete
    assert notes.scored == ["test/Bob - Two", "test/Ann - One"]  # the longest first
    found = read_results(tmp_path / "out")
    assert found.tracks == outcome.results.tracks
    medians = {source: [] for source in SOURCES}
    for track in found.tracks:
        name = track.track.removeprefix("test/")
        home, theirs = root / "test" / name, folder / name
        references = torch.stack([read(home / f"{source}.wav") for source in SOURCES])
        estimates = torch.stack([read(theirs / f"{source}.wav") for source in SOURCES])
        windows = museval(references, estimates, window=RATE, hop=RATE, taps=512)[0]
        pair = references[None], estimates[None]
        for number, source in enumerate(SOURCES):
            scores = track.sources[source]
            assert scores.nsdr == pytest.approx(new_sdr(*pair)[0, number].item(), abs=1e-6)
            assert scores.si_sdr == pytest.approx(si_sdr(*pair)[0, number].item(), abs=1e-6)
            assert scores.sdr == pytest.approx(windows[number], abs=1e-3)
            medians[source].append(np.nanmedian(windows[number]))
    expected = {source: np.median(values) for source, values in medians.items()}
    expected["overall"] = np.mean(list(expected.values()))
    assert aggregate(found, "sdr", "median") == pytest.approx(expected, abs=1e-3)
    assert f"SDR median   {expected['bass']:>10.2f}" in table(found)


def test_a_model_separates_the_mixture_at_its_own_level_and_rate(root, data, tmp_path):
    outcome, _ = run(tmp_path / "out", shares(0.25), data)
    (track, _) = outcome.results.tracks
    assert track.samplerate == RATE
    assert track.seconds == 2.0
    home = root / "test" / "Ann - One"
    references = torch.stack([read(home / f"{source}.wav") for source in SOURCES])
    mixture = read(home / "mixture.wav")
    expected = new_sdr(references[None], 0.25 * mixture.expand(2, -1, -1)[None])[0]
    found = [track.score(source, "nsdr") for source in SOURCES]
    assert found == pytest.approx(expected.tolist(), abs=1e-3)


def test_a_model_of_another_rate_is_scored_at_that_of_the_references(tmp_path):
    root = tmp_path / "songs"
    write(root / "One", stems(2.0, seed=0), rate=RATE // 2)  # 4 s, and no mixture of its own
    data = open_set("folder", root, subset=None)
    outcome, _ = run(tmp_path / "out", shares(0.5), data)
    (track,) = outcome.results.tracks
    assert (track.samplerate, track.seconds) == (RATE // 2, 4.0)
    references = torch.stack([read(root / "One" / f"{source}.wav") for source in SOURCES])
    estimates = 0.5 * references.sum(0).expand(2, -1, -1)
    expected = new_sdr(references[None], estimates[None])[0]
    found = [track.score(source, "nsdr") for source in SOURCES]
    assert found == pytest.approx(expected.tolist(), abs=0.2)  # what is above half the rate goes


def test_what_is_scored_is_not_computed_again(data, tmp_path, caplog):
    first = [data.names[0]]
    outcome, notes = run(tmp_path, shares(), data, first)
    assert notes.scored == first
    assert not outcome.complete
    outcome, notes = run(tmp_path, shares(), data)
    assert notes.scored == [data.tracks[1].name]
    assert outcome.complete
    path = track_path(tmp_path, first[0])
    lacking, shorter = (json.loads(path.read_text()) for _ in range(2))
    del lacking["sources"]["bass"]
    for name in WINDOWED:
        shorter["sources"]["bass"][name] = []
    for damaged in (path.read_text()[:50], json.dumps(lacking), json.dumps(shorter)):
        caplog.clear()
        path.write_text(damaged)
        outcome, notes = run(tmp_path, shares(), data)
        assert notes.scored == first
        assert f"{path} is damaged" in caplog.text
    assert not (tmp_path / "claims").exists()


def test_a_track_that_changed_is_scored_again(root, data, tmp_path, caplog):
    run(tmp_path / "out", shares(), data)
    write(root / "test" / "Ann - One", {"bass": stems(2.0, seed=5)["bass"]})
    data = open_set("folder", root, subset=None)
    before = read_results(tmp_path / "out").tracks[0]
    outcome, notes = run(tmp_path / "out", shares(), data)
    assert notes.scored == ["test/Ann - One"]
    assert "test/Ann - One: its files have changed, so it is scored again." in caplog.text
    assert outcome.results.tracks[0].sources["bass"] != before.sources["bass"]


def test_stems_that_changed_are_scored_again(root, data, tmp_path):
    folder = make_stems(tmp_path / "stems", root)
    run(tmp_path / "out", Stems(folder), data)
    path = folder / "Bob - Two" / "bass.wav"
    write(path.parent, {"bass": 0.5 * soundfile.read(path)[0]})
    _, notes = run(tmp_path / "out", Stems(folder), data)
    assert notes.scored == ["test/Bob - Two"]


def test_copies_of_the_same_files_are_not_scored_again(root, data, tmp_path, caplog):
    folder = make_stems(tmp_path / "stems", root)
    run(tmp_path / "out", Stems(folder), data)
    shutil.copytree(root, tmp_path / "elsewhere")
    for path in [*(tmp_path / "elsewhere").rglob("*.wav"), *folder.rglob("*.wav")]:
        os.utime(path, (1, 1))
    data = open_set("folder", tmp_path / "elsewhere", subset=None)
    outcome, notes = run(tmp_path / "out", Stems(folder), replace(data, name="songs"))
    assert (notes.scored, outcome.complete) == ([], True)
    assert not caplog.records


def test_a_folder_of_other_settings_is_refused(data, tmp_path):
    run(tmp_path, shares(), data)
    with pytest.raises(ValueError, match=r"separation.shifts 1 there, 2 here\): name another"):
        run(tmp_path, shares(settings=Settings(shifts=2)), data)
    with pytest.raises(ValueError, match=r"model.hash 0\.5 there, 0\.1 here"):
        run(tmp_path, shares(0.1), data)
    with pytest.raises(ValueError, match="data.subset test there, all here"):
        run(tmp_path, shares(), replace(data, subset="all"))
    run(tmp_path, shares(settings=Settings(batch_size=3)), data)  # which makes no difference
    (tmp_path / "settings.json").write_text("{")
    run(tmp_path, shares(), data)
    assert json.loads((tmp_path / "settings.json").read_text())["separation"]["shifts"] == 1


def test_results_of_tracks_that_are_gone_are_put_aside(data, tmp_path, caplog):
    run(tmp_path, shares(), data)
    one = replace(data, tracks=data.tracks[:1])
    outcome, notes = run(tmp_path, shares(), one)
    assert not notes.scored
    assert outcome.complete
    assert len(read_results(tmp_path).tracks) == 1
    assert f"is of a track that {data.root} lacks: now it is" in caplog.text


def test_sources_that_both_have_are_scored(data, tmp_path, caplog):
    judged = shares(0.5, ("vocals", "rest"))
    outcome, _ = run(tmp_path / "out", judged, data)
    assert outcome.results.sources == ["vocals"]
    said = f"Only vocals will be scored: shares alone has rest and {data.root} alone has bass."
    assert [record.getMessage() for record in caplog.records] == [said]
    with pytest.raises(ValueError, match=r"shares has a, and .*songs has bass and vocals: no sour"):
        run(tmp_path / "other", shares(0.5, ("a",)), data)


def test_a_silent_reference_has_no_score_and_is_counted(root, tmp_path):
    silence = np.zeros(2 * RATE)
    write(root / "test" / "Ann - One", {"bass": silence})
    outcome, _ = run(tmp_path / "out", shares(), open_set("folder", root, subset=None))
    results = outcome.results
    (ann, bob) = results.tracks
    assert ann.sources["bass"].silent
    assert math.isnan(ann.score("bass", "nsdr"))
    assert aggregate(results, "nsdr", "mean")["bass"] == bob.score("bass", "nsdr")
    assert as_json(results)["silent"] == {"bass": 1}
    unscored = as_json(results)["unscored"]
    assert unscored["nsdr"] == {"bass": 1}
    assert unscored["sdr"] == dict.fromkeys(results.sources, 1)
    why = "bass in 1 track (silent reference)"
    assert f"Without nSDR, and left out of median and mean: {why}." in table(results)


def test_a_track_that_fails_does_not_stop_the_others(root, data, tmp_path):
    path = root / "test" / "Bob - Two" / "mixture.wav"
    path.write_bytes(path.read_bytes()[:-100])
    outcome, notes = run(tmp_path / "out", shares(), data)
    assert notes.scored == ["test/Ann - One"]
    assert len(notes.faults) == 1
    assert notes.faults[0].startswith("test/Bob - Two: ")
    assert "is truncated" in outcome.faults["test/Bob - Two"]
    assert not outcome.complete


def test_a_bad_track_of_the_data_set_does_not_stop_the_others(root, data, tmp_path):
    path = root / "test" / "Bob - Two" / "bass.wav"
    samples = path.read_bytes()
    path.write_bytes(samples[:-100])
    bad = open_set("folder", root, subset=None)
    assert (len(bad), bad.names) == (2, data.names)
    outcome, notes = run(tmp_path / "out", shares(), bad)
    assert (notes.scored, outcome.complete) == (["test/Ann - One"], False)
    assert "bass.wav is truncated" in outcome.faults["test/Bob - Two"]
    assert outcome.left(bad.names) == []
    path.write_bytes(samples)
    outcome, notes = run(tmp_path / "out", shares(), open_set("folder", root, subset=None))
    assert (notes.scored, outcome.faults) == (["test/Bob - Two"], {})


def test_results_of_another_place_are_never_put_aside(root, data, tmp_path):
    run(tmp_path / "out", shares(), data)
    (tmp_path / "b").mkdir()
    shutil.copytree(root, tmp_path / "b" / "songs")
    run(tmp_path / "out", shares(), open_set("folder", tmp_path / "b" / "songs", subset=None))
    write(tmp_path / "b" / "songs" / "test" / "Ann - One", stems(2.0, seed=7))
    (tmp_path / "b" / "songs" / "test" / "Ann - One" / "mixture.wav").unlink()
    other = open_set("folder", tmp_path / "b" / "songs", subset=None)
    usual = usual_folder(tmp_path, data, "shares")
    assert usual == tmp_path / "songs-test" / "shares"
    run(usual, shares(), data)
    assert re.fullmatch("songs-[0-9a-f]{6}-test", usual_folder(tmp_path, other, "x").parent.name)
    assert usual_folder(tmp_path, data, "x") == tmp_path / "songs-test" / "x"
    with pytest.raises(ValueError, match=r"holds results of the tracks in .*are others: name ano"):
        run(usual, shares(), other)
    assert len(read_results(usual).tracks) == 2


def test_what_has_computed_is_in_the_results_and_changes_no_key(data, tmp_path):
    run(tmp_path, shares(settings=Settings(batch_size=2)), data)
    before = read_results(tmp_path).tracks[0]
    assert before.machine == {
        "device": "CPU",
        "threads": torch.get_num_threads(),
        "batch_size": 2,
    }
    _, notes = run(tmp_path, shares(settings=Settings(batch_size=1)), data)
    assert not notes.scored
    versions = json.loads((tmp_path / "settings.json").read_text())["versions"]
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert versions["demucs_lightning"] == project["project"]["version"]


def test_excerpts_are_of_the_loudest_part(tmp_path, monkeypatch):
    signals_ = stems(20.0, seed=0)
    signals_["bass"][12 * RATE : 15 * RATE] *= 4
    write(tmp_path / "songs" / "One", signals_)
    data = open_set("folder", tmp_path / "songs", subset=None)
    outcome, _ = run(tmp_path / "out", shares(), data)
    part = outcome.results.tracks[0].excerpt
    assert part is not None
    assert part.seconds == 8.0
    assert 7.0 <= part.start <= 12.0
    folder = excerpt_folder(tmp_path / "out", "One")
    kinds = [f"{name}.{kind}" for name in SOURCES for kind in ("estimate", "reference")]
    assert sorted(path.name for path in folder.iterdir()) == [
        *(f"{kind}.flac" for kind in kinds[:2]),
        "mixture.flac",
        *(f"{kind}.flac" for kind in kinds[2:]),
    ]
    found, rate = soundfile.read(folder / "bass.reference.flac")
    start = round(part.start * RATE)
    assert rate == RATE
    assert np.abs(found - signals_["bass"][start : start + 8 * RATE]).max() < 2**-15
    without, _ = run(tmp_path / "none", shares(), data, excerpts=False)
    assert without.results.tracks[0].excerpt is None
    assert not (tmp_path / "none" / "excerpts").exists()


def test_long_tracks_are_held_on_disk(data, tmp_path, monkeypatch):
    there, _ = run(tmp_path / "a", shares(), data)
    monkeypatch.setattr(signals, "IN_MEMORY", 1000)
    here, _ = run(tmp_path / "b", shares(), data)
    for one, two in zip(there.results.tracks, here.results.tracks, strict=True):
        assert one.sources == two.sources


def test_several_workers_share_the_tracks(data, tmp_path):
    notes = Notes()
    evaluation = Evaluation(tmp_path, [shares(), shares()], data)
    assert evaluation.run(data, notes).complete
    assert sorted(notes.scored) == [track.name for track in data.tracks]


def test_a_set_without_tracks_is_said(data, tmp_path):
    tracks: list[Track] = []
    with pytest.raises(ValueError, match="songs has no tracks of the subset test"):
        run(tmp_path, shares(), replace(data, tracks=tracks))
