"""Folders of stems, and what is wrong with some of them; hashes of models."""

import logging
import re

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from demucs_lightning import audio
from demucs_lightning.commands.settings import conf_folder
from demucs_lightning.evaluation.estimates import Separated, Settings, Stems, model_hash
from demucs_lightning.evaluation.run import Evaluation
from demucs_lightning.evaluation.tracks import open_set
from demucs_lightning.separation import BagOfModels
from tests.audio.sounds import stempeg_song
from tests.evaluation.songs import SOURCES, Notes, make_set, make_stems, stems, write
from tests.separator.models import RATE, small


@pytest.fixture
def root(tmp_path):
    return make_set(tmp_path / "songs")


@pytest.fixture
def folder(root, tmp_path):
    return make_stems(tmp_path / "stems", root)


def run(folder, root, out):
    data = open_set("folder", root, subset=None)
    return Evaluation(out, [Stems(folder)], data, excerpts=False).run(data)


def lossy(folder, suffix):
    for path in list(folder.rglob("*.wav")):
        samples, rate = audio.read(path)
        audio.write(path.with_suffix(suffix), samples, samplerate=rate)
        path.unlink()


@pytest.mark.parametrize(("suffix", "apart"), [(".flac", 0.01), (".ogg", 3), (".mp3", 6)])
def test_stems_may_be_of_any_format(folder, root, tmp_path, suffix, apart):
    expected = run(folder, root, tmp_path / "wav").results
    lossy(folder, suffix)
    found = run(folder, root, tmp_path / "other")
    assert found.complete
    for source in SOURCES:
        scores = found.results.column(source, "nsdr").values()
        assert list(scores) == pytest.approx([*expected.column(source, "nsdr").values()], abs=apart)


def test_a_stem_file_is_scored_against_itself(tmp_path):
    for name in ("songs", "stems"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "Song.stem.mp4").write_bytes(stempeg_song().read_bytes())
    data = open_set("folder", tmp_path / "songs", subset=None)
    judged = Stems(tmp_path / "stems")
    assert judged.sources == ["bass", "drums", "other", "vocals"]
    assert data.sources == ["drums", "bass", "other", "vocals"]
    judged.check(data.tracks, data.sources)
    (track,) = data.tracks
    from demucs_lightning.evaluation.signals import Mixture, References

    mixture = Mixture(track)
    found = judged.estimates(track, mixture, data.sources).read(0, track.frames)
    references = References(track, data.sources, mixture.channels).read(0, track.frames)
    assert found.shape == (4, 2, track.frames)
    assert torch.equal(found, references)
    assert torch.equal(references[2], audio.read(stempeg_song(), stream=3)[0])


def test_a_track_is_found_by_the_end_of_its_name(folder, root, tmp_path):
    folder.rename(tmp_path / "moved")
    (tmp_path / "nested").mkdir()
    (tmp_path / "moved").rename(tmp_path / "nested" / "test")
    assert run(tmp_path / "nested", root, tmp_path / "out").complete


def change(path, *, frames=0, rate=RATE):
    """Cut the file by so many samples, or make it longer, or of another rate."""
    samples, _ = soundfile.read(path)
    longer = np.concatenate([samples, np.zeros(max(0, frames))])
    soundfile.write(path, longer[: len(samples) + frames], rate, subtype="FLOAT")


@pytest.mark.parametrize(("frames", "word"), [(-700, "padded with silence"), (700, "cut")])
def test_a_little_difference_in_length_is_mended_and_said(
    folder, root, tmp_path, caplog, frames, word
):
    change(folder / "Ann - One" / "bass.wav", frames=frames)
    with caplog.at_level(logging.WARNING):
        assert run(folder, root, tmp_path / "out").complete
    lengths = f"has {16000 + frames} samples .* and its reference 16000 .*: it is {word}"
    assert re.search(lengths, caplog.text)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda song: change(song / "bass.wav", frames=-900),
            r"bass\.wav has 15100 samples \(1\.89 s\) and its reference 16000 \(2\.00 s\)",
        ),
        (
            lambda song: change(song / "bass.wav", rate=11025),
            r"bass\.wav has a rate of 11025 Hz and its reference one of 8000 Hz",
        ),
        (
            lambda song: (song / "vocals.wav").unlink(),
            r"^test/Ann - One: \S+stems has bass of it, and lacks vocals\.$",
        ),
        (lambda song: song.rename(song.with_name("x")), "stems has no track of this name"),
        (lambda song: (song / "bass.wav").write_bytes(b"RIFF"), r"bass\.wav can't be decoded"),
    ],
)
def test_what_does_not_fit_is_said_and_the_others_are_scored(folder, root, tmp_path, spoil, said):
    spoil(folder / "Ann - One")
    found = run(folder, root, tmp_path / "out")
    assert [track.track for track in found.results.tracks] == ["test/Bob - Two"]
    assert re.search(said, found.faults.pop("test/Ann - One"))
    assert not found.faults


def test_what_does_not_fit_is_said_before_anything_is_computed(folder, root, tmp_path):
    (folder / "Ann - One" / "vocals.wav").unlink()
    data = open_set("folder", root, subset=None)
    evaluation, notes = Evaluation(tmp_path, [Stems(folder)], data, excerpts=False), Notes()
    assert not evaluation.run(data.only(["test/Ann - One"]), notes).complete
    assert len(notes.faults) == 1
    assert not list(tmp_path.glob("tracks/*"))
    (folder / "Ann - One" / "vocals.wav").write_bytes(
        (folder / "Ann - One" / "bass.wav").read_bytes()
    )
    again = Evaluation(tmp_path, [Stems(folder)], data, excerpts=False)
    assert again.run(data).complete  # what failed is tried again


def test_the_usual_settings_are_those_of_conf():
    conf = OmegaConf.load(conf_folder() / "config.yaml").test
    usual = Settings()
    names = ("shifts", "overlap", "segment", "seed")
    assert {name: getattr(usual, name) for name in names} == {name: conf[name] for name in names}


def test_stems_with_more_channels_than_the_mixture_are_mixed_down(folder, root, tmp_path):
    expected = run(folder, root, tmp_path / "mono").results.tracks
    for path in folder.rglob("*.wav"):
        samples, rate = soundfile.read(path)
        soundfile.write(path, np.stack([samples, samples], 1), rate, subtype="FLOAT")
    for one, two in zip(run(folder, root, tmp_path / "two").results.tracks, expected, strict=True):
        assert one.sources == two.sources


def test_a_folder_without_stems_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no stems: <track>/<source>.wav"):
        Stems(tmp_path)
    write(tmp_path / "One", stems(1.0, seed=0))
    assert Stems(tmp_path).sources == sorted(SOURCES)


def test_the_hash_is_that_of_the_weights():
    model, same, other = small(0), small(0), small(1)
    assert model_hash(model) == model_hash(same) != model_hash(other)
    assert len(model_hash(model)) == 64
    with torch.no_grad():
        next(same.parameters()).flatten()[0] += 1e-6
    assert model_hash(model) != model_hash(same)
    bags = [BagOfModels([model, other], [[w] * 4, [1.0] * 4]) for w in (1.0, 2.0)]
    assert model_hash(bags[0]) != model_hash(bags[1])


def test_a_bag_says_what_it_is_made_of(root, tmp_path):
    models = [small(seed, SOURCES, audio_channels=1) for seed in (0, 1)]
    bag = BagOfModels(models, [[1.0, 0.0], [0.0, 1.0]])
    judged = Separated(bag, name="pair", digest=model_hash(bag), device="cpu")
    assert judged.model["klass"] == "Demucs"
    assert judged.separation is not None
    assert judged.separation["segment"] == 2.0
    data = open_set("folder", root, subset=None)
    found = Evaluation(tmp_path / "bag", [judged], data).run(data).results
    for number, source in enumerate(SOURCES):
        one = Separated(models[number], name="one", digest=f"{number}", device="cpu")
        alone = Evaluation(tmp_path / source, [one], data).run(data).results
        scores = zip(found.tracks, alone.tracks, strict=True)
        # The delays of a bag's members are not those of a single model.
        assert all(
            a.score(source, "nsdr") == pytest.approx(b.score(source, "nsdr"), abs=0.05)
            for a, b in scores
        )
    longer = BagOfModels([small(0), small(1, segment=3)])
    several = Separated(longer, name="several", digest="", device="cpu")
    assert several.separation is not None
    assert several.separation["segment"] is None
