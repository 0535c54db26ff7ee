import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from demucs_lightning import audio, commands, pretrained
from demucs_lightning.commands import tracks
from demucs_lightning.commands.separate import Console
from tests.audio.sounds import tones
from tests.audio.test_fuzz import damaged, originals
from tests.separator.models import FOUR, RATE, Shares, noise, small_file
from tests.separator.test_files import files_up_to

BAD = 320
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    return small_file(tmp_path_factory.mktemp("models") / "small.th")


@pytest.fixture
def songs(tmp_path) -> Path:
    folder = tmp_path / "songs"
    (folder / "disc 1" / "ä 音🎵").mkdir(parents=True)
    for number, name in enumerate(["a.wav", "disc 1/ä 音🎵/b.flac", "disc 1/c.mp3"]):
        samples = noise(2, 9000, number).clamp(-1, 1)
        audio.write(folder / name, samples, samplerate=RATE)
    (folder / "notes.txt").write_text("no song")
    (folder / ".d.wav").write_text("hidden")
    return folder


@pytest.fixture
def cheap(monkeypatch):
    """The model `htdemucs` is one that costs nothing."""
    model = Shares()
    monkeypatch.setattr(pretrained, "load_model", lambda *_, **__: model)
    return model


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder: its status, stdout and stderr."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def separate(*arguments) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as caught:
            commands.main(["separate", "-d", "cpu", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return caught.value.code, out, err

    return separate


def written() -> set[str]:
    return {str(path) for path in Path().rglob("*") if path.is_file()}


def stems(folder: str, names=tuple(FOUR), ext: str = "wav") -> set[str]:
    return {f"{folder}/{name}.{ext}" for name in names}


def test_a_file(run, songs, weights):
    code, out, err = run(songs / "a.wav", "-n", weights)
    assert code == 0, err
    assert "CPU" in out
    assert "fp32" in out
    assert "x real time" in out
    assert written() == stems("separated/small/a")


def test_a_folder(run, songs, cheap):
    code, out, err = run(songs)
    assert (code, err) == (0, "")
    assert "3 tracks: 3 done." in out
    places = ["a", "disc 1/ä 音🎵/b", "disc 1/c"]
    assert written() == set().union(*(stems(f"separated/htdemucs/{place}") for place in places))


def test_stems_in_the_folder_of_the_songs_are_no_songs(run, songs, cheap):
    assert run(songs, "-o", songs / "out")[0] == 0
    code, out, _ = run(songs, "-o", songs / "out", "--skip-existing")
    assert code == 0
    assert "3 tracks: 3 skipped." in out


@pytest.mark.parametrize(
    ("flags", "files"),
    [
        (["-o", "x/y"], stems("x/y/htdemucs/a")),
        (["--filename", "{track}.{trackext} {stem}.{ext}"],
         {f"separated/htdemucs/a.wav {name}.wav" for name in FOUR}),
        (["--flac"], stems("separated/htdemucs/a", ext="flac")),
        (["--mp3"], stems("separated/htdemucs/a", ext="mp3")),
        (["--mp3", "--mp3-bitrate", 64, "--mp3-preset", 7],
         stems("separated/htdemucs/a", ext="mp3")),
        (["--format", "ogg"], stems("separated/htdemucs/a", ext="ogg")),
        (["--format", "stem.mp4"], {"separated/htdemucs/a.stem.mp4"}),
        (["--stems", "bass,vocals"], stems("separated/htdemucs/a", ["bass", "vocals"])),
        (["--two-stems", "vocals"], stems("separated/htdemucs/a", ["vocals", "no_vocals"])),
        (["--two-stems", "vocals", "--other-method", "minus"],
         stems("separated/htdemucs/a", ["vocals", "minus_vocals"])),
        (["--two-stems", "vocals", "--other-method", "none"],
         stems("separated/htdemucs/a", ["vocals"])),
        (["-n", "hf://user/model"], stems("separated/user_model/a")),
        (["-n", "some/where/best.ckpt"], stems("separated/best/a")),
        (["--dry-run"], set()),
    ],
)  # fmt: skip
def test_what_is_written(run, songs, cheap, flags, files):
    code, out, err = run(songs / "a.wav", *flags)
    assert (code, err) == (0, "")
    assert written() == files


def mode(path: str) -> tuple[int, str]:
    info = audio.info(path)
    return info.samplerate, info.subtype


@pytest.mark.parametrize(
    ("flags", "form"),
    [
        ([], (RATE, "PCM_16")),
        (["--int24"], (RATE, "PCM_24")),
        (["--float32"], (RATE, "FLOAT")),
        (["--depth", "32"], (RATE, "PCM_32")),
        (["--depth", "keep", "--rate", "22050"], (22_050, "PCM_16")),
        (["--flac", "--int24"], (RATE, "PCM_24")),
    ],
)
def test_rate_and_depth(run, songs, cheap, flags, form):
    assert run(songs / "a.wav", *flags)[0] == 0
    assert {mode(path) for path in written()} == {form}


def test_flags_reach_the_model(run, songs, monkeypatch, weights):
    seen = {}
    real = tracks.Separator
    monkeypatch.setattr(
        "demucs_lightning.commands.separate.Separator",
        lambda model, **settings: seen.update(settings) or real(model, **settings),
    )
    flags = ["--shifts", 2, "--overlap", 0.1, "--segment", 1.5, "--batch-size", 3, "--seed", 7]
    assert run(songs / "a.wav", *flags, "--precision", "bf16", "-n", weights)[0] == 0
    assert seen == {
        "device": "cpu",
        "shifts": 2,
        "overlap": 0.1,
        "segment": 1.5,
        "batch_size": 3,
        "seed": 7,
        "precision": "bf16",
    }
    assert run(songs / "a.wav", "--no-split", "-n", weights, "--overwrite")[0] == 0
    assert seen["segment"] == torch.inf


def test_jobs_are_threads(run, songs, cheap):
    before = torch.get_num_threads()
    try:
        assert "CPU (2 threads)" in run(songs / "a.wav", "-j", 2)[1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_local_folder_of_models(run, songs, weights):
    code, out, _ = run(songs / "a.wav", "--repo", weights.parent, "-n", "small", "--offline")
    assert code == 0
    assert written() == stems("separated/small/a")


def test_list_models(capsys, weights):
    commands.main(["separate", "--list-models"])
    listed = capsys.readouterr().out.split()
    assert {"htdemucs", "htdemucs_ft", "mdx_extra", "955717e8"} <= {*listed}
    commands.main(["separate", "--list-models", "--repo", str(weights.parent)])
    assert "small" in capsys.readouterr().out.split()


def test_the_exact_sum(run, songs, weights):
    assert run(songs / "a.wav", "-n", weights, "--exact-sum")[0] == 0
    read = [soundfile.read(path, dtype="int16")[0].astype(int) for path in sorted(written())]
    assert np.array_equal(sum(read), soundfile.read(songs / "a.wav", dtype="int16")[0])


@pytest.mark.parametrize("mode", ["rescale", "clamp", "none"])
def test_clip_modes(run, songs, cheap, mode):
    cheap.gains = (4.0, 1.0, 1.0, 1.0)
    audio.write(songs / "a.wav", tones(2, 20_000, RATE), samplerate=RATE)
    code, out, _ = run(songs / "a.wav", "--clip-mode", mode)
    peaks = [audio.read(path)[0].abs().max().item() for path in sorted(written())]
    assert code == 0
    top, rest = {"rescale": (0.99, 0.2475), "clamp": (0.99, 0.5), "none": (1, 0.5)}[mode]
    assert sorted(peaks) == pytest.approx([rest] * 3 + [top], abs=2e-3)
    assert ("6.1 dB quieter" in out) == (mode == "rescale")


def test_a_report(run, songs, cheap):
    (songs / "bad.wav").write_text("RIFF")
    code, out, err = run(songs, "--json")
    found = json.loads(out)
    assert code == 1
    assert not found["complete"]
    assert found["precision"] == "fp32"
    status = {Path(each["track"]).name: each["status"] for each in found["tracks"]}
    assert status == {"a.wav": "done", "bad.wav": "failed", "b.flac": "done", "c.mp3": "done"}
    for each in found["tracks"]:
        if each["status"] == "done":
            assert set(each["files"]) == {*FOUR}
            assert each["seconds"] == pytest.approx(9000 / RATE, abs=0.2)
            assert each["gain"] == 1
        else:
            assert str(songs / "bad.wav") in each["error"]
    assert "3 done, 1 failed" in err


def test_a_report_of_what_ends_the_run(run, songs, cheap):
    code, out, err = run(songs, "--json", "--rate", "fast")
    assert code == 1
    report = json.loads(out)
    assert report["error"] in err
    assert (report["complete"], report["tracks"]) == (False, [])


def test_existing_files(run, songs, cheap):
    assert run(songs / "a.wav")[0] == 0
    code, _, err = run(songs / "a.wav")
    assert code == 1
    assert "a/drums.wav is there already" in err
    code, out, _ = run(songs / "a.wav", "--skip-existing")
    assert code == 0
    assert "skipped" in out
    assert run(songs / "a.wav", "--overwrite")[0] == 0


def test_tracks_of_one_name_are_told(run, songs, cheap):
    audio.write(songs / "a.flac", noise(2, 900).clamp(-1, 1), samplerate=RATE)
    code, _, err = run(songs / "a.wav", songs / "a.flac", "--overwrite")
    assert code == 1
    assert f"{songs / 'a.wav'} and {songs / 'a.flac'} give stems of the same names" in err
    assert "a.flac would take the place of the stems of" in err
    assert "is there already" not in err
    template = "{track}.{trackext}/{stem}.{ext}"
    assert run(songs / "a.wav", songs / "a.flac", "--filename", template)[0] == 0


def test_a_failed_track_blocks_no_other_of_its_name(run, songs, cheap):
    (songs / "a.flac").write_text("no sound")
    code, out, _ = run(songs / "a.flac", songs / "a.wav")
    assert code == 1
    assert "2 tracks: 1 done, 1 failed." in out
    assert written() == stems("separated/htdemucs/a")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--other-method", "minus"], "--other-method has no effect without --two-stems."),
        (["--exact-sum", "--mp3"], "mp3 is lossy: with it stems sum up only roughly."),
    ],
)
def test_what_has_no_effect_is_said(run, songs, cheap, caplog, flags, said):
    assert run(songs / "a.wav", *flags)[0] == 0
    assert [record.message for record in caplog.records] == [said]


def test_other_stems_and_links_are_no_songs(run, songs, cheap):
    audio.write(songs / "out/mdx/a/bass.wav", noise(2, 900).clamp(-1, 1), samplerate=RATE)
    (songs / "link.wav").symlink_to(songs / "a.wav")
    code, out, _ = run(songs / "a.wav", songs, "-o", songs / "out")
    assert code == 0
    assert "3 tracks: 3 done." in out


def test_stems_beside_the_songs(run, songs, cheap):
    code, out, _ = run(songs, "-o", songs)
    assert code == 0
    assert "3 tracks: 3 done." in out


def test_flac_has_no_floats(run, songs, cheap, caplog):
    assert run(songs / "a.wav", "--flac", "--float32")[0] == 0
    said = [record.message for record in caplog.records]
    assert said == ["flac has no such thing as FLOAT samples: that is left out."]
    assert {mode(path) for path in written()} == {(RATE, "PCM_16")}


def test_ctrl_c_while_a_command_is_loaded(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "import_module", interrupted)
    with pytest.raises(SystemExit) as caught:
        commands.main(["separate"])
    assert caught.value.code == 130
    assert capsys.readouterr().err == "Interrupted.\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "No tracks are given"),
        (["a.wav", "--stems", "flute"], "no stem 'flute'"),
        (["a.wav", "--two-stems", "flute"], "no stem 'flute'"),
        (["a.wav", "--stems", "bass", "--exact-sum"], "exact_sum needs all parts"),
        (["a.wav", "--segment", "99"], "at most 1 seconds"),
        (["a.wav", "--segment", "-1"], "segment is -1.0"),
        (["a.wav", "--overlap", "1"], "overlap is 1.0"),
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
        (["a.wav", "--format", "ogg", "--stems", ","], "must be a list"),
        (["x" * 300], "File name too long"),
        (["nowhere.wav"], "nowhere.wav is not there"),
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


def nan_in_it(path: Path) -> None:
    samples = noise(2, 16_000).T.numpy().copy()
    samples[8000] = np.nan
    soundfile.write(path, samples, RATE, subtype="FLOAT")


def cut(path: Path) -> None:
    soundfile.write(path, noise(2, 16_000).T.numpy(), RATE)
    path.write_bytes(path.read_bytes()[:9999])


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("x.wav", lambda path: path.write_bytes(b""), "is empty"),
        ("x.wav", cut, "is truncated"),
        ("x.flac", cut, "truncated"),
        ("x.mp3", lambda path: path.write_text("no sound " * 99), "can't be decoded"),
        ("x.mp4", video_without_sound, "has no sound"),
        ("x.wav", nan_in_it, "second 1.000"),
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


def test_names_that_are_no_text(run, tmp_path, cheap):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff song.wav"))
    audio.write(path, noise(2, 900), samplerate=RATE)
    code, out, _ = run(path, "--json")
    assert code == 0
    assert "\\udcff song" in out
    assert len(written()) == 4


def test_no_memory_is_a_sentence(run, songs, cheap, monkeypatch):
    def forward(mixture):
        raise torch.OutOfMemoryError("CUDA out of memory. " * 9)

    cheap.forward = forward
    code, _, err = run(songs / "a.wav")
    assert code == 1
    assert "not enough memory, even for one short segment" in err
    assert written() == set()


def test_a_full_disk(run, songs, cheap):
    audio.write(songs / "a.wav", noise(2, 200_000), samplerate=RATE)
    with files_up_to(500_000):
        code, out, err = run(songs)
    assert code == 1
    assert "separated/htdemucs/a can't hold what is computed (File too large)." in err
    assert "3 tracks: 2 done, 1 failed." in out
    assert not any(path.startswith("separated/htdemucs/a/") for path in written())


def test_less_memory_takes_shorter_segments(run, songs, cheap, caplog):
    forward = Shares.forward
    cheap.segment = 5.0

    def short_of_memory(mixture):
        if mixture.shape[-1] > 1.5 * RATE:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(cheap, mixture)

    cheap.forward = short_of_memory
    audio.write(songs / "a.wav", noise(2, 12 * RATE), samplerate=RATE)
    assert run(songs / "a.wav")[0] == 0
    said = [record.message for record in caplog.records]
    assert said == [
        "The device is out of memory: going on with segments of 2.5 s.",
        "The device is out of memory: going on with segments of 1.2 s.",
    ]
    assert written() == stems("separated/htdemucs/a")


def test_a_model_that_does_not_fit(run, songs, cheap, monkeypatch):
    def no_room(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("demucs_lightning.commands.separate.Separator", no_room)
    code, _, err = run(songs / "a.wav")
    assert code == 1
    assert "htdemucs does not fit into the memory that cpu has left" in err


def test_an_interruption_before_the_first_track(run, songs, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrained, "load_model", interrupted)
    code, _, err = run(songs)
    assert (code, err) == (130, "Interrupted: nothing was written.\n")


def test_settings_that_a_format_has_not_are_left_out(run, songs, cheap, caplog):
    assert run(songs / "a.wav", "--mp3", "--int24")[0] == 0
    assert run(songs / "a.wav", "--mp3-bitrate", 320, "--mp3-preset", 2)[0] == 0
    said = [record.message.partition(":")[0] for record in caplog.records]
    assert said == [f"{form} has no such thing as a {what}" for form, what in
                    (("mp3", "depth"), ("wav", "bit rate"), ("wav", "preset"))]  # fmt: skip
    assert written() == stems("separated/htdemucs/a", ext="mp3") | stems("separated/htdemucs/a")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption(run, songs, cheap, how):
    forward = Shares.forward

    def interrupted(mixture):
        if cheap.calls == 4:
            signal.raise_signal(how)
        return forward(cheap, mixture)

    cheap.forward = interrupted
    before = signal.getsignal(signal.SIGTERM)
    code, out, _ = run(songs)
    assert code == 130
    assert "Interrupted: no half-written file is left." in out
    assert "3 tracks: 2 done, 1 not separated." in out
    assert signal.getsignal(signal.SIGTERM) == before
    places = {str(Path(file).parent) for file in written()}
    assert len(places) == 2
    assert written() == set().union(*map(stems, places))


def test_warnings_are_told_once(capsys):
    console = Console()
    for number in (1, 2, 1):
        console.emit(logging.LogRecord("x", logging.WARNING, "", 0, "%d pieces", (number,), None))
    assert capsys.readouterr().err == "1 pieces\n2 pieces\n"


def test_the_bar_tells_speed_and_time_left(cheap, songs, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    planned = tracks.plan(
        tracks.Separator(cheap, device="cpu"), songs / "a.wav", songs / "out", tracks.Choice()
    )
    with tracks.bar("1/1 a.wav", planned) as progress:
        time.sleep(0.2)
        progress(0.25)
        progress(1.0)
    shown = capsys.readouterr().err
    assert "1/1 a.wav" in shown
    assert "x real time" in shown


def test_hundreds_of_damaged_files(run, tmp_path, cheap):
    (tmp_path / "real").mkdir()
    (tmp_path / "bad").mkdir()
    files = originals(tmp_path / "real")
    for number in range(BAD):
        chance = random.Random(1000 + number)
        suffix = chance.choice(sorted(files))
        path = tmp_path / "bad" / f"{number}.{suffix.replace('.', '-', suffix.count('.') - 1)}"
        path.write_bytes(damaged(files[suffix], chance))
    code, out, err = run(tmp_path / "bad", "--json", "--clip-mode", "none")
    assert code == 1
    found = json.loads(out)["tracks"]
    assert len(found) == BAD
    failed = [each for each in found if each["status"] == "failed"]
    assert BAD // 4 < len(failed) < BAD
    for each in failed:
        assert each["track"] in each["error"]
        assert "\n" not in each["error"]
        assert each["error"] in err
    done = [each for each in found if each["status"] == "done"]
    assert written() == {file for each in done for file in each["files"].values()}


LONG = """
import sys
import torch
from demucs_lightning import Separator
from tests.memory import peak
from tests.separator.models import Shares, noise
torch.set_num_threads(1)
separator = Separator(Shares((0.6, 3.0), ["a", "b"]), device="cpu", segment=10)
before = peak()
report = separator.separate_to(sys.argv[1], sys.argv[2], exact_sum=True)
after = peak()
print(after - before, report.seconds)
"""


def test_half_an_hour_in_little_memory(tmp_path):
    minute = noise(2, 60 * RATE).clamp(-1, 1)
    with audio.writer(tmp_path / "x.wav", samplerate=RATE, channels=2) as writer:
        for _ in range(30):
            writer.write(minute)
    command = [sys.executable, "-c", LONG, tmp_path / "x.wav", tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    grown, seconds = done.stdout.split()
    assert float(seconds) == 1800
    # Kilobytes; the mixture and its two stems are 350,000.
    assert int(grown) < 175_000
    assert {path.name for path in (tmp_path / "out/x").iterdir()} == {"a.wav", "b.wav"}
