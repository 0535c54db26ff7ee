"""``python test.py``: the scores of ``evaluate``, with the settings of training."""

import shutil
from pathlib import Path

import pytest

from demucs_lightning.commands import evaluate
from demucs_lightning.commands import test as scoring
from demucs_lightning.commands import train as training
from demucs_lightning.evaluation.results import METRICS, read_results


@pytest.fixture
def checkpoint(tiny: list[str], tmp_path: Path) -> Path:
    """Of a tiny model for two sources."""
    line = ["model=Demucs", "model.depth=2", "sources=[bass,drums]", "segment=2", "epochs=1"]
    training.main([*tiny, *line, "batch_size=2", "data_augmentation=False", "logger=csv"])
    return tmp_path / "run" / "best.ckpt"


def test_the_scores_are_those_of_evaluate(
    checkpoint: Path, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    line = [f"resume_checkpoint={checkpoint}", tiny[0], "data.workers=0", "logger=csv"]
    line += [f"hydra.run.dir={tmp_path}/scored", "trainer.limit_test_batches=1"]
    scoring.main(line)
    out = capsys.readouterr().out
    assert "MusdbHQ test, 1 of 2 tracks" in out
    assert "BSS Eval v4" in out
    (folder,) = (tmp_path / "run" / "results" / "MusdbHQ-test").iterdir()
    found = read_results(folder)
    assert folder.name == f"best-{found.settings['model']['hash'][:8]}"
    assert found.settings["separation"] == {
        "shifts": 1,
        "overlap": 0.25,
        "segment": 8.0,
        "precision": "fp32",
        "seed": 42,
    }
    logged = next((tmp_path / "scored").rglob("metrics.csv")).read_text().splitlines()
    scores = dict(zip(logged[0].split(","), logged[-1].split(","), strict=True))
    (track,) = found.tracks
    assert float(scores["test/nsdr_bass"]) == pytest.approx(track.score("bass", "nsdr"), abs=1e-6)
    assert float(scores["test/sdr_drums"]) == pytest.approx(track.score("drums", "sdr"), abs=1e-6)

    run = ["--settings", str(tmp_path / "run" / "settings.yaml"), "--tracks", track.track]
    with pytest.raises(SystemExit) as stop:
        evaluate.main([str(checkpoint), *run, "-d", "cpu", "-o", str(tmp_path / "again")])
    assert stop.value.code == 0
    again = read_results(tmp_path / "again")
    assert again.tracks[0].sources == track.sources
    assert again.tracks[0].key == track.key
    assert again.settings == found.settings

    # Without the settings of the run, the defaults are the same: so are the numbers.
    bare = ["--data", str(tiny[0].removeprefix("data_root=")), "--tracks", track.track]
    with pytest.raises(SystemExit):
        evaluate.main([str(checkpoint), *bare, "-d", "cpu", "-o", str(tmp_path / "bare")])
    bare = read_results(tmp_path / "bare")
    assert bare.settings["separation"] == found.settings["separation"]
    for source in found.sources:  # BSS Eval rounds otherwise, as the sources have another order
        for metric in METRICS:
            expected = pytest.approx(track.score(source, metric), abs=1e-4)
            assert bare.tracks[0].score(source, metric) == expected

    scoring.main(line)
    assert "1 scored already" in capsys.readouterr().out


def test_a_track_that_fails_is_told_and_the_others_are_scored(
    checkpoint: Path, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(tiny[0].removeprefix("data_root="), tmp_path / "lacking"))
    (root / "test" / "Dan - Four" / "drums.wav").write_bytes(b"RIFF")
    capsys.readouterr()
    line = [f"resume_checkpoint={checkpoint}", f"data_root={root}", "data.workers=0"]
    with pytest.raises(SystemExit) as stop:
        scoring.main([*line, f"hydra.run.dir={tmp_path}/scored", "logger=csv"])
    assert stop.value.code == 1
    said = capsys.readouterr()
    assert "CPU (1 thread) in fp32 · MusdbHQ test: 2 tracks" in said.out
    assert "MusdbHQ test, 1 of 2 tracks" in said.out
    assert said.err.count("failed: Dan - Four: ") == 1
    assert said.err.splitlines()[-1].startswith("error: 1 track could not be scored: ")
    (folder,) = (tmp_path / "run" / "results" / "MusdbHQ-test").iterdir()
    assert [track.track for track in read_results(folder).tracks] == ["Eve - Five"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("resume_checkpoint=null", "test needs resume_checkpoint=PATH"),
        ("trainer.limit_test_batches=0", "then there is no track to score"),
        ("test.shifts=-1", "test.shifts is -1: it must be 0 or more"),
        ("test.every=-1", "test.every is -1: it must be 0 or more"),
        ("test.evert=1", "did you mean test.every"),
    ],
)
def test_mistakes_end_in_one_sentence(
    change: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [f"resume_checkpoint={tmp_path}/none.ckpt", f"hydra.run.dir={tmp_path}", change]
    with pytest.raises(SystemExit) as stop:
        scoring.main(run)
    assert stop.value.code == 1
    assert said in capsys.readouterr().err
