"""The demo, shrunk to three songs of seconds and two steps: table, stems and picture."""

import re
from pathlib import Path

import matplotlib.image
import pytest
import torch

from demucs_lightning import audio
from demucs_lightning.commands import demo
from demucs_lightning.data.demo import make_demo_songs
from demucs_lightning.metrics import new_sdr


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_songs(tmp_path_factory.mktemp("demo") / "songs", songs=(1, 1, 1), seconds=6)


def test_demo_scores_and_separates_the_real_recording(
    songs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["model.channels=4", "segment=2", "trainer.max_steps=2", "trainer.limit_val_batches=1"]
    demo.main([f"data_root={songs}", *tiny, "trainer.enable_progress_bar=false"])
    out = capsys.readouterr().out

    rows = re.findall(r"^  (\S.*?)((?: +-?\d+\.\d\d){5})$", out, flags=re.MULTILINE)
    values = [(name, [float(value) for value in row.split()]) for name, row in rows]
    tables = [dict(values[:4]), dict(values[4:])]
    (mixture, stems) = demo.real_recording()
    for table in tables:
        assert table["silence"] == [0.0] * 5
        assert {"before", "the mixture itself"} < set(table)
    expected = new_sdr(stems[None], mixture[None, None].expand(1, 4, -1, -1))[0].tolist()
    assert tables[1]["the mixture itself"][:4] == pytest.approx(expected, abs=0.01)

    folder = Path(out.rstrip().splitlines()[-1].split(": ")[1])
    assert folder.is_relative_to(tmp_path)
    for name in demo.STREAMS:
        stem, samplerate = audio.read(folder / f"{name}.wav")
        assert samplerate == 44100
        assert stem.shape == mixture.shape
        assert torch.isfinite(stem).all()
        assert stem.any()
    assert torch.equal(audio.read(folder / "mixture.wav")[0], mixture)
    picture = matplotlib.image.imread(folder / "picture.png")
    assert picture.shape[0] > 500
    assert picture.std() > 0.1


def test_the_mixture_is_the_sum_of_the_real_stems() -> None:
    mixture, stems = demo.real_recording()
    assert mixture.shape == stems.shape[1:]
    assert mixture.shape[1] > 6 * 44100
    error = new_sdr(mixture[None, None], stems.sum(0)[None, None])
    assert float(error) > 12  # not exact: the record was mastered, and every stream coded


def test_a_missing_recording_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as error:
        demo.main([])
    assert error.value.code == 1
    assert "pip install stempeg" in capsys.readouterr().err
