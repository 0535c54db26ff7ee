"""Bad input: each is one clear sentence, and the other tracks are separated."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from demucs_lightning import audio, pretrained
from tests.audio.sounds import pcm_format, riff
from tests.pretrained.conftest import reference_model
from tests.separate_command.places import stems, written
from tests.separator.models import RATE, noise


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "No tracks are given"),
        (["a.wav", "--stems", "flute"], "no stem 'flute'"),
        (["a.wav", "--two-stems", "flute"], "no stem 'flute'"),
        (["a.wav", "--stems", "bass", "--exact-sum"], "--exact-sum needs all parts"),
        (["a.wav", "--segment", "99"], "at most 1 seconds"),
        (["a.wav", "--segment", "-1"], "error: --segment is -1.0"),
        (["a.wav", "--overlap", "1"], "error: --overlap is 1.0"),
        (["a.wav", "--rate", "fast"], "--rate is fast"),
        (["a.wav", "-j", "-1"], "--jobs is -1"),
        (["a.wav", "-d", "cuda:77"], "CUDA device"),
        (["a.wav", "-d", "toaster"], "device is 'toaster'"),
        (["a.wav", "--filename", "{nope}"], "has {nope}"),
        (["a.wav", "--filename", "{track}.{ext}"], "one name"),
        (["a.wav", "--filename", "../{track}{stem}"], "must stay in the output folder"),
        (["a.wav", "--flac", "--filename", "{stem}.wav"], "let it end in .{ext}"),
        (["a.wav", "b.wav", "--filename", "../{stem}.{ext}"], "must stay in the output folder"),
        (["a.wav", "--mp3", "--mp3-bitrate", "9999"], "bitrate=9999"),
        (["a.wav", "--format", "ogg", "--stems", ","], "--stems is ','"),
        (["x" * 300], "File name too long"),
        (["nowhere.wav"], "nowhere.wav is not there"),
        ([os.devnull], f"{os.devnull} is no file but a device or a pipe"),
        ([""], "A track's name is empty"),
        (["a.wav", ""], "A track's name is empty"),
        (["a.wav", "-o", ""], "--out is empty"),
        (["no*.wav"], "the shell found no file"),
        (["https://x.org/a.wav"], "https://x.org/a.wav is an address"),
        (["a.wav", "-n", "song.wav"], "it takes a model"),
        (["a.wav", "--seed", 2**64], f"--seed is {2**64}"),
        (["a.wav", "--seed", -(2**63) - 1], "--seed is -"),
        (["a.wav", "-j", 10**6], "--jobs is 1000000"),
        (["a.wav", "--shifts", 1001], "--shifts is 1001: it must be 0 to 1000"),
        (["a.wav", "--filename", "{stem}"], "let it end in .{ext}"),
        (["a.wav", "--filename", "{track} {stem}.wave"], "let it end in .{ext}"),
    ],
)
def test_mistakes_are_one_sentence(run, songs, cheap, arguments, said):
    cheap.max_segment = 1.0
    arguments = [songs / "a.wav" if each == "a.wav" else each for each in arguments]
    code, _, err = run(*arguments)
    assert code == 1
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert written() == set()


def test_an_unknown_model(run, songs):
    code, _, err = run(songs / "a.wav", "-n", "htdemuks")
    assert code == 1
    assert "did you mean htdemucs" in err


def video_without_sound(path: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width = stream.height = 64
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def not_finite(value: float):
    def make(path: Path) -> None:
        samples = noise(2, 16_000).T.numpy().copy()
        samples[8000] = value
        soundfile.write(path, samples, RATE, subtype="FLOAT")

    return make


def corrupt(at: int, content: bytes):
    def make(path: Path) -> None:
        soundfile.write(path, noise(2, 16_000).T.numpy(), RATE)
        found = path.read_bytes()
        path.write_bytes(found[:at] + content + found[at + len(content) :])

    return make


def cut(path: Path) -> None:
    soundfile.write(path, noise(2, 16_000).T.numpy(), RATE)
    path.write_bytes(path.read_bytes()[:9999])


def text(path: Path) -> None:
    path.write_text("no sound " * 99)


def no_samples(path: Path) -> None:
    path.write_bytes(riff((b"fmt ", pcm_format(2))))


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("x.wav", lambda path: path.write_bytes(b""), "is empty"),
        ("x.wav", cut, "is truncated"),
        ("x.flac", cut, "truncated"),
        ("x.wav", no_samples, "can't be decoded as audio: it ends too early."),
        ("x.wav", text, "can't be decoded as audio: it is none, or it is damaged."),
        ("x.mp3", text, "can't be decoded as audio: it is none, or it is damaged."),
        ("x.mp4", video_without_sound, "has no sound"),
        ("x.wav", not_finite(np.nan), "holds NaN or infinite values from second 1.000 on"),
        ("x.wav", not_finite(np.inf), "holds NaN or infinite values from second 1.000 on"),
        ("x.wav", not_finite(-np.inf), "holds NaN or infinite values from second 1.000 on"),
        ("x.wav", not_finite(1e30), "holds values beyond any sound (1e+30) from second 1.000"),
        ("x.wav", corrupt(0, b"JUNK"), "can't be decoded"),
        ("x.flac", corrupt(500, b"no sound" * 400), "can't be decoded"),
        ("x.ogg", corrupt(60, b"no sound" * 400), "can't be decoded"),
        ("x.zip", lambda path: path.write_bytes(b"PK" + bytes(999)), "can't be decoded"),
        ("x", lambda path: path.mkdir(), "without audio files"),
    ],
)
def test_bad_tracks_are_told_and_the_others_go_on(run, songs, cheap, name, make, said):
    bad = songs / name
    make(bad)
    code, out, err = run(bad, songs / "a.wav")
    assert code == 1
    assert str(bad) in err
    assert said in err
    assert "2 tracks: 1 done, 1 failed." in out
    assert written() == stems("separated/htdemucs/a")


@pytest.mark.parametrize("rate", [8000, 192_000])
@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("loud", [0.0, 0.1])
def test_unusual_tracks_are_separated(run, tmp_path, weights, rate, channels, loud):
    path = tmp_path / "x.wav"
    audio.write(path, noise(channels, 9000, loud=loud), samplerate=rate)
    code, _, err = run(path, "-n", weights)
    assert (code, err) == (0, "")
    for stem in written():
        found, found_rate = audio.read(stem)
        assert (found_rate, found.shape) == (rate, (channels, 9000))
        assert found.any() == bool(loud)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg", "m4a", "opus", "aiff"])
def test_one_sample(run, tmp_path, weights, suffix):
    path = tmp_path / f"x.{suffix}"
    audio.write(path, noise(2, 1).clamp(-1, 1), samplerate=48_000)
    code, _, err = run(path, "-n", weights)
    assert (code, err) == (0, "")
    frames = audio.info(path).frames
    for stem in written():
        found, rate = audio.read(stem)
        assert (rate, found.shape) == (48_000, (2, frames))
        assert np.isfinite(found.numpy()).all()


@pytest.mark.parametrize(
    "name", ["Ω≈ç√ 'x' \"y\" $(z) %s {stem}", "-n", "日本語 العربية", "a" * 250]
)
def test_names_of_any_kind(run, tmp_path, cheap, name):
    path = tmp_path / f"{name}.wav"
    audio.write(path, noise(2, 900), samplerate=RATE)
    code, _, err = run(path)
    assert (code, err) == (0, "")
    assert len(written()) == 4
    (folder,) = {Path(file).parent for file in written()}
    assert len(os.fsencode(folder.name)) <= 200


def for_a_user(path, mode) -> bool:
    """What os.access says to one who isn't root."""
    return Path(path).stat().st_mode & 0o200 != 0 if mode & os.W_OK else True


def test_a_folder_that_is_read_only(run, songs, cheap, monkeypatch):
    Path("out").mkdir(mode=0o555)
    monkeypatch.setattr(os, "access", for_a_user)
    code, _, err = run(songs / "a.wav", "-o", "out")
    assert code == 1
    assert err == (
        f"error: {songs / 'a.wav'}: {Path('out').absolute()} can't be written to: choose another "
        "folder.\n"
    )
    assert cheap.calls == 0


def test_a_track_that_can_not_be_read(run, songs, cheap, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)
    code, _, err = run(songs / "a.wav")
    assert code == 1
    assert err == (f"error: {songs / 'a.wav'} can't be read: this user has no permission to.\n")


def test_a_file_is_in_the_place_of_the_folder(run, songs, cheap):
    Path("separated").write_text("")
    code, _, err = run(songs / "a.wav")
    assert code == 1
    assert "separated is a file: a folder for the stems was expected." in err
    assert cheap.calls == 0


def test_a_segment_that_a_transformer_was_not_trained_for(run, songs, tmp_path):
    model: Any = reference_model("HTDemucs")
    package = pretrained.Package("HTDemucs", model._init_args_kwargs[1], model.state_dict(), "x")
    pretrained.write(package, tmp_path / "x.th", half=False)
    longest = float(model.segment)
    code, _, err = run(songs / "a.wav", "-n", tmp_path / "x.th", "--segment", longest + 1)
    assert code == 1
    assert f"the model takes chunks of at most {longest:g} seconds" in err
    assert len(err.splitlines()) == 1
