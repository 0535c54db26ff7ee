"""Names on the command line, and those that tracks give their stems."""

import os
from pathlib import Path

import pytest
import soundfile

from demucs_lightning import audio
from tests.separate_command.places import stems, written
from tests.separator.models import RATE, noise


def test_options_may_stand_between_tracks(run, songs, cheap):
    audio.write(songs / "e.wav", noise(2, 900), samplerate=RATE)
    code, out, _ = run(songs / "a.wav", "--seed", 1, songs / "e.wav", "--json", songs / "disc 1")
    assert code == 0
    assert out.count('"status": "done"') == 4
    os.link(songs / "e.wav", "-n")
    assert run("-o", "x", "--", "-n")[0] == 0
    assert stems("x/htdemucs/-n") <= written()


def test_a_dangling_link_in_a_folder_is_said(run, songs, cheap):
    (songs / "gone.wav").symlink_to("nowhere.wav")
    code, out, err = run(songs)
    assert code == 1
    assert f"{songs / 'gone.wav'} is a link to nowhere.wav, which is not there." in err
    assert "4 tracks: 3 done, 1 failed." in out


def test_a_template_without_the_track(run, songs, cheap):
    code, _, err = run(songs / "a.wav", songs / "disc 1/c.mp3", "--filename", "{stem}.{ext}")
    assert code == 1
    assert err.startswith("error: --filename is '{stem}.{ext}': without {track} the stems of ")
    assert len(err.splitlines()) == 1
    assert (written(), cheap.calls) == (set(), 0)
    (songs / "disc 1/ä 音🎵/b.flac").unlink()
    assert run(songs, "--filename", "{stem}.{ext}")[0] == 0, "folders tell them apart"
    assert written() == stems("separated/htdemucs") | stems("separated/htdemucs/disc 1")


def test_many_tracks_of_one_name_are_told_in_one_line(run, songs, cheap):
    for suffix in ("flac", "aiff", "ogg"):
        audio.write(songs / f"a.{suffix}", noise(2, 900).clamp(-1, 1), samplerate=RATE)
    code, _, err = run(*sorted(songs.glob("a.*")))
    assert code == 1
    assert err.count("--filename") == 1
    assert "give stems of the same names, and so do 2 others: only the first" in err
    assert err.count("would take the place of the stems of") == 3


STEM_FILE = Path("separated/htdemucs/a.stem.mp4")


def test_a_file_that_lacks_stems_is_written_anew(run, songs, cheap, caplog):
    flags = [songs / "a.wav", "--format", "stem.mp4"]
    assert run(*flags, "--stems", "vocals")[0] == 0
    code, out, _ = run(*flags, "--skip-existing", "--stems", "vocals")
    assert (code, "skipped" in out) == (0, True)
    assert run(*flags, "--skip-existing")[0] == 0
    assert f"{STEM_FILE} lacks drums, bass, other: it is written anew." in caplog.text
    whole = STEM_FILE.read_bytes()
    assert audio.stem_names(STEM_FILE) == ["drums", "bass", "other", "vocals"]
    assert "skipped" in run(*flags, "--skip-existing")[1]
    assert STEM_FILE.read_bytes() == whole


def test_a_file_with_other_stems_stays(run, songs, cheap):
    flags = [songs / "a.wav", "--format", "stem.mp4"]
    assert run(*flags, "--stems", "vocals")[0] == 0
    code, _, err = run(*flags, "--stems", "bass", "--skip-existing")
    assert code == 1
    assert "lacks bass and holds vocals: --overwrite replaces it" in err
    assert audio.stem_names(STEM_FILE) == ["vocals"]


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(
    ("rate", "subtype", "flags", "said"),
    [
        (192_000, "PCM_16", ["--mp3"], "mp3 can't hold 192000 Hz: these stems have 48000 Hz."),
        (
            44_100,
            "PCM_16",
            ["--format", "opus"],
            "opus can't hold 44100 Hz: these stems have 48000",
        ),
        (44_100, "PCM_16", ["--mp3", "--mp3-bitrate", 12], "these stems have 32 kbit/s."),
        (44_100, "DOUBLE", [], "The track has 64 bits, and these stems 32, as wav holds no more."),
        (44_100, "FLOAT", ["--flac"], "The track has 32 bits, and these stems 24, as flac"),
    ],
)
def test_what_a_format_can_not_hold_is_said_of_each(run, tmp_path, rate, subtype, flags, said):
    for name in "ab":
        samples = noise(2, rate // 20, loud=0.1).T.double().numpy()
        soundfile.write(tmp_path / f"{name}.wav", samples, rate, subtype=subtype)
    code, _, err = run(tmp_path / "a.wav", tmp_path / "b.wav", *flags)
    assert code == 0
    for line, name in zip(err.splitlines(), "ab", strict=True):
        assert line.startswith(f"{tmp_path / name}.wav: ")
        assert said in line
    err = run(tmp_path / "a.wav", *flags, "--overwrite")[2]
    assert "a.wav" not in err, "of one track it is plain"


def test_a_segment_beyond_all_bounds_is_one_piece(run, songs, cheap):
    assert run(songs, "--float32", "--no-split", "-o", "whole")[0] == 0
    for segment in (1e5, 1e308):
        assert run(songs, "--float32", "--segment", segment, "-o", "long", "--overwrite")[0] == 0
        for path in Path("long").rglob("*.wav"):
            assert path.read_bytes() == ("whole" / path.relative_to("long")).read_bytes()
