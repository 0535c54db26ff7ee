import resource
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import demucs.api
import numpy as np
import pytest
import soundfile
import torch

from demucs_lightning import Separator, audio, pretrained
from demucs_lightning.audio import Encoding, Tags, wav
from demucs_lightning.separation import BagOfModels
from demucs_lightning.separator import Target
from tests.audio.sounds import same_sound, stempeg_song, tones
from tests.pretrained.conftest import reference_model
from tests.separator.models import FOUR, RATE, Shares, noise, small, small_file

FLOAT = Target(subtype="FLOAT")
LOUD = (3.0, 0.5, -0.25, -2.0)


@pytest.fixture
def separator():
    return Separator(Shares(), device="cpu", shifts=0)


def song(path: Path, samples=None, subtype="PCM_16", rate=RATE, tags=None) -> Path:
    samples = noise(2, 150_000).clamp(-1, 1) if samples is None else samples
    how = Encoding(subtype=subtype) if subtype else None
    with audio.writer(
        path, samplerate=rate, channels=len(samples), encoding=how, tags=tags
    ) as writer:
        writer.write(samples)
    return path


def integers(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="int32")[0].astype(np.int64)


def everything(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*"))


@pytest.mark.parametrize("rate", [RATE, 11_025])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_streamed_equals_in_memory(tmp_path, rate, channels):
    separator = Separator(BagOfModels([small(), small(1)]), device="cpu", shifts=1, batch_size=2)
    path = song(tmp_path / "x.wav", noise(channels, 70_001), rate=rate)
    expected = separator.separate(path)
    report = separator.separate_to(path, tmp_path / "out", target=FLOAT)
    assert list(report.files) == FOUR
    for name, file in report.files.items():
        assert file == tmp_path / "out/x" / f"{name}.wav"
        found, found_rate = audio.read(file)
        assert found_rate == rate
        torch.testing.assert_close(found, expected[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["Demucs", "HDemucs", "HTDemucs"])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_reference_gives_the_same(tmp_path, kind, channels):
    model: Any = reference_model(kind)
    package = pretrained.Package(kind, model._init_args_kwargs[1], model.state_dict(), kind)
    pretrained.write(package, tmp_path / "small.th", half=False)
    path = song(tmp_path / "x.wav", noise(channels, 50_001), subtype="FLOAT")
    reference = demucs.api.Separator("small", tmp_path, "cpu", shifts=0, overlap=0.3)
    expected = reference.separate_audio_file(path)[1]
    separator = Separator(tmp_path / "small.th", device="cpu", shifts=0, overlap=0.3)
    report = separator.separate_to(path, tmp_path / "out")
    for name, file in report.files.items():
        found = audio.read(file)[0]
        wanted = expected[name].mean(0, keepdim=True) if channels == 1 else expected[name]
        assert (found - wanted).abs().max() < 1e-5 * max(1, wanted.abs().max()), name


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT"])
@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff"])
def test_rate_depth_channels_and_length_stay(tmp_path, separator, subtype, suffix):
    if suffix == "flac" and subtype in ("PCM_32", "FLOAT"):
        subtype = "PCM_24"
    path = song(tmp_path / f"x.{suffix}", noise(1, 12_345), subtype, rate=96_000)
    report = separator.separate_to(path, tmp_path / "out", target=Target(format=suffix))
    for file in report.files.values():
        info = audio.info(file)
        assert (info.samplerate, info.channels, info.frames) == (96_000, 1, 12_345)
        assert info.subtype == subtype


@pytest.mark.parametrize("form", ["mp3", "m4a", "ogg", "opus"])
def test_codecs(tmp_path, separator, form):
    path = song(tmp_path / "x.wav", tones(2, 44_100), rate=44_100)
    report = separator.separate_to(path, tmp_path / "out", target=Target(format=form))
    sound, rate = audio.read(report.files["drums"])
    sound = audio.resample(sound, old=rate, new=44_100)
    assert same_sound(sound, tones(2, 44_100)) > 0.99


def test_all_stems_in_one_file(tmp_path, separator):
    path = song(tmp_path / "x.wav", tones(2, 44_100), rate=44_100)
    report = separator.separate_to(path, tmp_path / "out", target=Target(format="stem.mp4"))
    (file,) = set(report.files.values())
    assert file == tmp_path / "out/x.stem.mp4"
    assert audio.stem_names(file) == FOUR
    for stream, gain in enumerate((1, *Shares().gains)):
        level = audio.read(file, stream=stream)[0][:, 4000:40_000].square().mean().sqrt()
        assert abs(level / gain - 0.5 / 2**0.5) < 0.01


def test_another_rate(tmp_path, separator):
    path = song(tmp_path / "x.wav", tones(2, 32_000, RATE))
    target = Target(rate=16_000, subtype="FLOAT")
    file = separator.separate_to(path, tmp_path / "out", target=target).files["drums"]
    found, rate = audio.read(file)
    assert rate == 16_000
    expected = audio.resample(tones(2, 32_000, RATE), old=RATE, new=16_000) / 2
    torch.testing.assert_close(found[:, 99:-99], expected[:, 99:-99], atol=1e-3, rtol=0)


def test_tags_are_carried_over(tmp_path, separator):
    tags = Tags(title="Ärger 音", artist="A/B", album="C")
    path = song(tmp_path / "x.flac", tags=tags)
    target = Target(format="flac", filename="{artist}/{album}/{title} {stem}.{ext}")
    report = separator.separate_to(path, tmp_path / "out", target=target)
    assert report.files["bass"] == tmp_path / "out/A_B/C/Ärger 音 bass.flac"
    found = audio.tags(report.files["bass"])
    assert (found.title, found.artist, found.album) == ("Ärger 音", "A/B", "C")


def test_a_real_song(tmp_path):
    separator = Separator(small(samplerate=44_100, segment=3), device="cpu")
    report = separator.separate_to(stempeg_song(), tmp_path / "out", exact_sum=True)
    mixture = audio.read(stempeg_song())[0]
    stems = torch.stack([audio.read(file)[0] for file in report.files.values()])
    assert stems.shape[1:] == mixture.shape
    assert report.gain < 1, "this song passes full scale"
    assert (stems.sum(0) - report.gain * mixture).abs().max() < 0.51 / 2**15


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize("settings", [{}, {"two_stems": "bass"}])
@pytest.mark.parametrize("sources", [FOUR, ["a", "bass", "c", "d"]])
def test_the_exact_sum_is_exact(tmp_path, subtype, settings, sources):
    separator = Separator(small(sources=sources), device="cpu")
    path = song(tmp_path / "x.wav", subtype=subtype)
    report = separator.separate_to(path, tmp_path / "out", exact_sum=True, **settings)
    assert report.gain == 1
    total = sum(integers(file) for file in report.files.values())
    assert np.array_equal(total, integers(path))


def test_one_gain_for_all_stems_where_one_would_clip(tmp_path):
    separator = Separator(Shares(LOUD), device="cpu", shifts=0)
    samples = noise(2, 150_000, loud=0.2).clamp(-1, 1)
    path = song(tmp_path / "x.wav", samples)
    report = separator.separate_to(path, tmp_path / "out")
    samples = audio.read(path)[0]
    mean = samples.mean()  # comes back to every stem
    peaks = [(share * (samples - mean) + mean).abs().max().item() for share in LOUD]
    assert report.gain == pytest.approx(1 / (1.01 * max(peaks)))
    for share, file in zip(LOUD, report.files.values(), strict=True):
        expected = report.gain * (share * (samples - mean) + mean)
        assert (audio.read(file)[0] - expected).abs().max() < 0.51 / 2**15
    exact = separator.separate_to(path, tmp_path / "exact", exact_sum=True)
    total = sum(audio.read(file)[0].double() for file in exact.files.values())
    assert (total - exact.gain * samples).abs().max() <= 0.51 / 2**15


@pytest.mark.parametrize(
    ("mode", "subtype", "top"),
    [
        ("clamp", "PCM_16", 0.99),
        ("clamp", "FLOAT", 0.99),
        ("none", "PCM_16", 1),
        ("none", "FLOAT", 2),
        ("rescale", "FLOAT", 2),
    ],
)
def test_what_passes_full_scale(tmp_path, mode, subtype, top):
    separator = Separator(Shares(gains=(2.0, 1, 1, 1)), device="cpu", shifts=0)
    path = song(tmp_path / "x.wav", tones(2, 20_000) * 1.999)
    target = Target(clip_mode=mode, subtype=subtype)
    report = separator.separate_to(path, tmp_path / "out", target=target)
    assert report.gain == 1
    found = audio.read(report.files["drums"])[0].abs().max().item()
    assert found == pytest.approx(top, abs=2e-3)


def test_past_4_gib_it_is_rf64(tmp_path, separator, monkeypatch):
    path = song(tmp_path / "x.wav")
    monkeypatch.setattr(wav, "LARGEST", 100_000)
    report = separator.separate_to(path, tmp_path / "out", target=FLOAT)
    for file in report.files.values():
        assert file.read_bytes()[:4] == b"RF64"
        assert audio.info(file).frames == 150_000


@pytest.mark.parametrize("loud", [0.0, 1.0])
@pytest.mark.parametrize("frames", [1, 3, 4000])
def test_silence_and_single_samples(tmp_path, loud, frames):
    path = song(tmp_path / "x.wav", noise(2, frames, loud=loud).clamp(-1, 1), rate=44_100)
    report = Separator(small(), device="cpu").separate_to(path, tmp_path / "out")
    for file in report.files.values():
        found = audio.read(file)[0]
        assert found.shape == (2, frames)
        assert loud or not found.any()


def test_what_is_there(tmp_path, separator):
    path, out = song(tmp_path / "x.wav"), tmp_path / "out"
    files = separator.separate_to(path, out).files
    before = {file: file.stat().st_mtime_ns for file in files.values()}
    with pytest.raises(FileExistsError, match="drums.wav is there already"):
        separator.separate_to(path, out)
    assert separator.separate_to(path, out, target=Target(existing="skip")).skipped
    assert before == {file: file.stat().st_mtime_ns for file in files.values()}
    files["bass"].unlink()
    report = separator.separate_to(path, out, target=Target(existing="skip"))
    assert report.kept == ("drums", "other", "vocals")
    assert not report.skipped
    again = {file: file.stat().st_mtime_ns for file in files.values()}
    assert [name for name in FOUR if again[files[name]] > before[files[name]]] == ["bass"]
    separator.separate_to(path, out, target=Target(existing="overwrite"))
    assert all(file.stat().st_mtime_ns > again[file] for file in again)


def test_a_track_never_replaces_itself(tmp_path, separator):
    path = song(tmp_path / "bass.wav")
    target = Target(filename="{stem}.{ext}", existing="overwrite")
    with pytest.raises(ValueError, match="its own stem"):
        separator.separate_to(path, tmp_path, target=target)


def test_a_folder_is_in_the_place_of_a_stem(tmp_path, separator):
    path = song(tmp_path / "x.wav")
    (tmp_path / "out/x/bass.wav").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match="bass.wav is a folder"):
        separator.separate_to(path, tmp_path / "out", target=Target(existing="overwrite"))


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50_000])


def nan(path: Path) -> None:
    song(path, noise(2, 16_000), "FLOAT")
    content = bytearray(path.read_bytes())
    content[-8 * 8000 :] = np.full(16_000, np.nan, "<f4").tobytes()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Path.unlink, "is not there"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("text " * 99), "can't be decoded"),
        (damage, "is truncated"),
        (nan, "second 1.000"),
    ],
)
def test_bad_files_leave_nothing(tmp_path, separator, change, said):
    path = song(tmp_path / "x.wav")
    change(path)
    with pytest.raises((ValueError, OSError), match=said) as caught:
        separator.separate_to(path, tmp_path / "out")
    assert str(path) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "channels", "said"),
    [
        ({"format": "mp3"}, 3, "can't have 3 channels"),
        ({"subtype": "PCM_24", "format": "mp3"}, 2, "no depth"),
        ({"bitrate": 5000, "format": "mp3"}, 2, "bitrate=5000"),
    ],
)
def test_encoders_are_checked_before(tmp_path, separator, settings, channels, said):
    path = song(tmp_path / "x.wav", noise(channels, 9000))
    with pytest.raises(ValueError, match=said):
        separator.separate_to(path, tmp_path / "out", target=Target(**settings))
    assert separator.model.calls == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"format": "xyz"}, "format is 'xyz': it must be one of aif, aiff, flac"),
        ({"clip_mode": "tanh"}, "clip_mode is 'tanh'"),
        ({"existing": "ask"}, "existing is 'ask'"),
        ({"filename": 5}, "filename is 5"),
        ({"rate": "44100"}, "^rate is '44100'"),
    ],
)
def test_targets_that_do_not_fit(settings, said):
    with pytest.raises(ValueError, match=said):
        Target(**settings)


def test_a_target_that_is_none(tmp_path, separator):
    target: Any = "flac"
    with pytest.raises(ValueError, match="target is 'flac': a Target was expected"):
        separator.separate_to(tmp_path / "x.wav", tmp_path, target=target)


def test_the_disk_is_checked_before(tmp_path, separator, monkeypatch):
    path = song(tmp_path / "x.wav")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is a file"):
        separator.separate_to(path, tmp_path / "file/out")
    # Floats between, and 16 bits; of headers 64 KiB are counted.
    needed = (4 * 4 + 4 * 2) * 2 * 150_000 + 4 * 2**16
    for free, fits in ((needed - 1, False), (needed, True)):
        usage = type("usage", (), {"free": free})
        monkeypatch.setattr("shutil.disk_usage", lambda _, usage=usage: usage)
        if fits:
            separator.separate_to(path, tmp_path / "out")
        else:
            with pytest.raises(OSError, match="to separate .*x.wav"):
                separator.separate_to(path, tmp_path / "out")
            assert separator.model.calls == 0


@contextmanager
def files_up_to(size: int):
    """No file may grow beyond."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("target", [FLOAT, Target(), Target(clip_mode="none")])
def test_a_disk_that_fails_leaves_nothing(tmp_path, separator, target):
    path = song(tmp_path / "x.wav", noise(2, 400_000).clamp(-1, 1))
    with files_up_to(1_000_000), pytest.raises(OSError, match=str(tmp_path / "out")):
        separator.separate_to(path, tmp_path / "out", target=target)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", [FLOAT, Target(), Target(format="stem.mp4", rate=44_100)])
def test_ctrl_c_leaves_nothing(tmp_path, target):
    class Interrupted(Shares):
        def forward(self, mixture):
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().forward(mixture)

    out = tmp_path / "out"
    out.mkdir()
    path = song(tmp_path / "x.wav")
    with pytest.raises(KeyboardInterrupt):
        Separator(Interrupted(), device="cpu").separate_to(path, out, target=target)
    assert everything(out) == []


def test_the_file_has_its_name_when_it_is_complete(tmp_path):
    seen = []

    class Watching(Shares):
        def forward(self, mixture):
            seen.append({path.name for path in everything(tmp_path / "out") if path.is_file()})
            return super().forward(mixture)

    Separator(Watching(), device="cpu").separate_to(
        song(tmp_path / "x.wav"), tmp_path / "out", target=FLOAT
    )
    assert all(len(names) == 4 for names in seen)
    assert all(name.startswith(".") for names in seen for name in names)
    assert {path.name for path in (tmp_path / "out/x").iterdir()} == {f"{n}.wav" for n in FOUR}


def test_two_runs_give_identical_files(tmp_path):
    path = song(tmp_path / "x.wav")
    for out in ("a", "b"):
        Separator(small_file(tmp_path / "m.th"), device="cpu", shifts=2).separate_to(
            path, tmp_path / out
        )
    for name in FOUR:
        first, second = (tmp_path / out / "x" / f"{name}.wav" for out in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()
