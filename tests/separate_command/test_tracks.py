"""Which tracks are separated, where their stems go, and what becomes of files that are there."""

import json
import os
from pathlib import Path

import pytest

from demucs_lightning import audio
from tests.audio.sounds import stempeg_song
from tests.separate_command.places import stems, written
from tests.separator.models import FOUR, RATE, noise


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


def test_names_that_are_no_text(run, tmp_path, cheap):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff song.wav"))
    audio.write(path, noise(2, 900), samplerate=RATE)
    code, out, _ = run(path, "--json")
    assert code == 0
    assert "\\udcff song" in out
    assert len(written()) == 4


def contents() -> dict[str, bytes]:
    return {path: Path(path).read_bytes() for path in written()}


@pytest.mark.parametrize("flags", [[], ["--float32"], ["--exact-sum"], ["--flac"]])
def test_only_the_stems_that_are_missing_are_written(run, songs, cheap, flags):
    assert run(songs, *flags)[0] == 0
    before = contents()
    gone = [path for path in before if Path(path).stem == "bass" and "/a/" in path]
    assert len(gone) == 1
    Path(gone[0]).unlink()
    times = {path: Path(path).stat().st_mtime_ns for path in written()}
    code, out, _ = run(songs, *flags, "--skip-existing", "--json")
    assert code == 0
    assert contents() == before
    assert all(Path(path).stat().st_mtime_ns == time for path, time in times.items())
    tracks = {Path(each["track"]).stem: each for each in json.loads(out)["tracks"]}
    assert {name: each["status"] for name, each in tracks.items()} == {
        "a": "done",
        "b": "skipped",
        "c": "skipped",
    }
    assert tracks["a"]["kept"] == ["drums", "other", "vocals"]
    assert tracks["b"]["kept"] == FOUR


def test_the_missing_stem_has_the_gain_of_the_others(run, songs, cheap):
    cheap.gains = (30.0, 1.0, 1.0, 1.0)
    assert run(songs / "a.wav")[0] == 0
    before = contents()
    Path("separated/htdemucs/a/bass.wav").unlink()
    assert run(songs / "a.wav", "--skip-existing")[0] == 0
    assert contents() == before


def test_what_is_kept_is_said(run, songs, cheap):
    assert run(songs)[0] == 0
    Path("separated/htdemucs/a/bass.wav").unlink()
    _, out, _ = run(songs, "--skip-existing", "--dry-run")
    assert "3 tracks: 1 planned (1 where some stems were there and stayed), 2 skipped." in out
    assert "a/bass.wav" in out
    assert "a/drums.wav" not in out
    _, out, _ = run(songs, "--skip-existing")
    assert "3 tracks: 1 done (1 where some stems were there and stayed), 2 skipped." in out
    assert "3 stems of it were there and stayed" in out
    assert written() == set().union(
        *(stems(f"separated/htdemucs/{place}") for place in ["a", "disc 1/ä 音🎵/b", "disc 1/c"])
    )


def test_a_stem_file_is_a_track(run, tmp_path, cheap):
    cheap.samplerate = 44_100
    path = tmp_path / "x.stem.mp4"
    path.write_bytes(stempeg_song().read_bytes())
    assert run(path, "--clip-mode", "none", "--depth", "float")[0] == 0
    assert written() == stems("separated/htdemucs/x")
    mixture = audio.read(path, stream=0)[0]
    drums = audio.read("separated/htdemucs/x/drums.wav")[0]
    assert (drums - mixture / 2).abs().max() < 1e-3, "of its streams, the first is the mixture"
    assert run(path, "--filename", "{track}.{trackext} {stem}.{ext}")[0] == 0
    assert "separated/htdemucs/x.stem.mp4 bass.wav" in written()


@pytest.mark.usefixtures("cheap")
def test_folders_that_can_not_be_read_are_told(run, songs, monkeypatch):
    listing = os.scandir

    def closed(path):
        if str(path).endswith("disc 1"):
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", closed)
    fault = f"{songs / 'disc 1'} can't be read (Permission denied)."
    code, out, err = run(songs)
    assert code == 1
    assert "2 tracks: 1 done, 1 failed." in out
    assert fault in err
    assert written() == stems("separated/htdemucs/a")
    code, _, err = run(songs / "disc 1")
    assert (code, err) == (1, f"error: {fault}\n")


@pytest.mark.usefixtures("cheap")
def test_links_to_folders_are_followed_once(run, songs, tmp_path):
    (songs / "disc 1").rename(tmp_path / "disc 1")
    (songs / "disc 1").symlink_to(tmp_path / "disc 1")
    (songs / "again").symlink_to(tmp_path / "disc 1")
    (songs / "round").symlink_to(songs)
    (tmp_path / "disc 1" / "up").symlink_to(tmp_path)
    code, out, err = run(songs)
    assert (code, err) == (0, "")
    assert "3 tracks: 3 done." in out
    places = ["a", "again/ä 音🎵/b", "again/c"]
    assert written() == set().union(*(stems(f"separated/htdemucs/{place}") for place in places))


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("form", ["wav", "flac", "mp3", "m4a", "ogg", "opus", "aiff", "stem.mp4"])
def test_stems_that_are_cut_off_are_made_anew(run, songs, caplog, form):
    audio.write(songs / "a.wav", noise(2, 3 * RATE).clamp(-1, 1), samplerate=RATE)
    flags = [songs / "a.wav", "--format", form, "--skip-existing"]
    assert run(*flags)[0] == 0
    before = contents()
    caplog.clear()
    assert "skipped, its stems are there" in run(*flags)[1]
    assert caplog.messages == []
    path = next(path for path in sorted(before) if "bass" in path or form == "stem.mp4")
    for size in (0, len(before[path]) // 2):
        Path(path).write_bytes(before[path][:size])
        caplog.clear()
        assert run(*flags)[0] == 0
        text = f"{path} is damaged or not as long as its track: it is made anew."
        assert {*caplog.messages} == {text}
        assert contents() == before


@pytest.mark.usefixtures("cheap")
def test_stems_of_another_track_are_made_anew(run, songs, caplog):
    assert run(songs / "a.wav")[0] == 0
    audio.write(songs / "a.wav", noise(2, 9001).clamp(-1, 1), samplerate=RATE)
    assert "skipped" in run(songs / "a.wav", "--skip-existing")[1], "rounding"
    audio.write(songs / "a.wav", noise(2, 9500).clamp(-1, 1), samplerate=RATE)
    assert run(songs / "a.wav", "--skip-existing")[0] == 0
    assert len({*caplog.messages}) == 4
    assert {audio.info(path).frames for path in written()} == {9500}
