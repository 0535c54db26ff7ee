"""The index of a folder of tracks: what it measures, when it measures anew, and what it refuses."""

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from demucs_lightning.data import cache, tracks
from demucs_lightning.data.cache import Recording
from demucs_lightning.data.tracks import INDEX, find_tracks, index_tracks, require_stems

SOURCES = ("drums", "bass", "other", "vocals")


def index(folder: Path, sources=SOURCES) -> list[tracks.Track]:
    return index_tracks(folder, find_tracks(folder), sources)


def samples(path: Path) -> np.ndarray:
    return soundfile.read(path, always_2d=True)[0]


def test_what_a_folder_holds(tmp_path, song):
    song(tmp_path / "b", ["bass", "drums"])
    song(tmp_path / "album" / "a", ["drums"], subtype=None, suffix=".flac")
    song(tmp_path / "b", ["bass"], suffix=".flac")
    song(tmp_path / ".hidden" / "c")
    song(tmp_path, ["loose"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "album" / "d.stem.mp4").touch()
    (tmp_path / "b" / "cover.jpg").touch()
    (tmp_path / "link").symlink_to(tmp_path / "b")
    found = find_tracks(tmp_path)
    assert list(found) == ["album/a", "album/d", "b", "empty", "link"]
    assert found["b"] == {stem: Recording(tmp_path / "b" / f"{stem}.wav") for stem in found["b"]}
    assert set(found["b"]) == {"bass", "drums"}
    assert found["album/a"] == {"drums": Recording(tmp_path / "album/a/drums.flac")}
    assert found["album/d"]["vocals"] == Recording(tmp_path / "album/d.stem.mp4", 4)
    assert found["album/d"]["mixture"].stream == 0
    assert found["empty"] == {}
    only_flac = find_tracks(tmp_path, (".flac",))
    assert only_flac["b"] == {"bass": Recording(tmp_path / "b" / "bass.flac")}


@pytest.mark.parametrize("channels", [1, 2])
def test_statistics_are_those_of_the_mono_mixture(tmp_path, song, channels):
    frames = 3 * 2**16 + 17  # more than one block
    song(tmp_path / "summed", frames=frames, channels=channels)
    song(tmp_path / "mixed", (*SOURCES, "mixture"), frames=frames, channels=channels)
    mixed, summed = index(tmp_path)
    expected = {
        "mixed": samples(tmp_path / "mixed" / "mixture.wav").mean(1),
        "summed": sum(samples(tmp_path / "summed" / f"{s}.wav").mean(1) for s in SOURCES),
    }
    for track in (mixed, summed):
        mono = np.asarray(expected[track.name])
        assert track.mean == pytest.approx(mono.mean(), rel=1e-6)
        assert track.std == pytest.approx(mono.std(ddof=1), rel=1e-6)
        assert (track.samplerate, track.frames) == (8000, frames)
        assert track.duration == frames / 8000
    assert summed.files["mixture"] is None
    assert mixed.files["mixture"] == Recording(tmp_path / "mixed" / "mixture.wav")


def test_silence_has_a_deviation_to_divide_by(tmp_path):
    (tmp_path / "a").mkdir()
    soundfile.write(tmp_path / "a" / "drums.wav", np.zeros((100, 2)), 8000)
    (track,) = index(tmp_path, ["drums"])
    assert (track.mean, track.std) == (0, 1)


def count_inspections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    inspect = tracks._inspect

    def counted(files):
        seen.append(next(iter(files.values())).path.parent.name)
        return inspect(files)

    monkeypatch.setattr(tracks, "_inspect", counted)
    return seen


def test_only_what_changed_is_indexed_anew(tmp_path, song, monkeypatch):
    seen = count_inspections(monkeypatch)
    for name in "abc":
        song(tmp_path / name)
    first = index(tmp_path)
    assert sorted(seen) == ["a", "b", "c"]
    seen.clear()
    assert index(tmp_path) == first
    assert not seen

    path = tmp_path / "b" / "bass.wav"
    soundfile.write(path, samples(path) / 2, 8000)  # as long as before
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    second = index(tmp_path)
    assert seen == ["b"]
    assert second[1].std < first[1].std
    assert (second[0], second[2]) == (first[0], first[2])
    seen.clear()

    song(tmp_path / "c", ["mixture"])
    shutil.rmtree(tmp_path / "a")
    third = index(tmp_path)
    assert seen == ["c"]
    assert [track.name for track in third] == ["b", "c"]
    assert third[1].std != first[2].std
    seen.clear()

    assert [set(track.files) for track in index(tmp_path, ["bass"])] == [{"mixture", "bass"}] * 2
    assert sorted(seen) == ["b", "c"]
    seen.clear()
    assert index(tmp_path) == third
    assert not seen, "another list of sources does not push out the first"


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"version": 2}', '{"version": 2, "tracks": 3}', '{"tracks": {}}', "\xff\0"],
)
def test_a_damaged_index_is_made_anew(tmp_path, song, content):
    song(tmp_path / "a")
    expected = index(tmp_path)
    sound = (tmp_path / INDEX).read_text()
    (tmp_path / INDEX).write_text(content, encoding="latin-1")
    assert index(tmp_path) == expected
    assert json.loads((tmp_path / INDEX).read_text()) == json.loads(sound)


@pytest.mark.parametrize("change", [{"frames": None}, {"std": "loud"}, {"files": {}}])
def test_a_damaged_entry_is_made_anew(tmp_path, song, change):
    song(tmp_path / "a")
    expected = index(tmp_path)
    content = json.loads((tmp_path / INDEX).read_text())
    for entry in content["tracks"].values():
        entry.update(change)
    (tmp_path / INDEX).write_text(json.dumps(content))
    assert index(tmp_path) == expected


def test_an_index_of_another_version_is_made_anew(tmp_path, song, monkeypatch):
    song(tmp_path / "a")
    index(tmp_path)
    seen = count_inspections(monkeypatch)
    monkeypatch.setattr(tracks, "INDEX_VERSION", tracks.INDEX_VERSION + 1)
    index(tmp_path)
    assert seen == ["a"]


def test_where_data_are_read_only_the_index_is_the_users(tmp_path, song, monkeypatch):
    seen = count_inspections(monkeypatch)
    song(tmp_path / "data" / "a")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(cache, "_writable", lambda folder: False)
    expected = index(tmp_path / "data")
    assert index(tmp_path / "data") == expected
    assert seen == ["a"]
    assert sorted(path.name for path in tmp_path.rglob("*.json")) == []
    assert not list((tmp_path / "work").iterdir())
    assert len(list(cache.user_cache().rglob(INDEX))) == 1


def test_an_index_beside_read_only_data_is_used(tmp_path, song, monkeypatch):
    song(tmp_path / "a")
    expected = index(tmp_path)
    monkeypatch.setattr(cache, "_writable", lambda folder: False)
    seen = count_inspections(monkeypatch)
    assert index(tmp_path) == expected
    assert not seen


def test_an_index_that_cant_be_kept_is_no_failure(tmp_path, song, monkeypatch, caplog):
    song(tmp_path / "a")
    expected = index(tmp_path)
    (tmp_path / INDEX).unlink()
    (tmp_path / "file").touch()
    monkeypatch.setattr(cache, "_writable", lambda folder: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert index(tmp_path) == expected
    assert "can't be kept" in caplog.text


def test_stems_of_other_lengths_or_rates_are_named(tmp_path, song):
    song(tmp_path / "a", frames=4000)
    song(tmp_path / "a", ["other"], frames=3999)
    with pytest.raises(ValueError, match=r"a/other\.wav has 3999 samples and drums\.wav has 4000"):
        index(tmp_path)
    song(tmp_path / "a", ["other"], frames=4000, rate=11025)
    message = r"a/other\.wav has a rate of 11025 Hz and drums\.wav one of 8000 Hz"
    with pytest.raises(ValueError, match=message):
        index(tmp_path)


def test_lossy_stems_may_differ_by_their_padding(tmp_path, song):
    song(tmp_path / "a", ["drums"], frames=44100, rate=44100, subtype=None, suffix=".ogg")
    song(tmp_path / "a", ["bass"], frames=44100 - 2000, rate=44100, subtype=None, suffix=".ogg")
    (track,) = index(tmp_path, ["drums", "bass"])
    assert track.frames == 44100 - 2000
    song(tmp_path / "a", ["bass"], frames=44100 - 9000, rate=44100, subtype=None, suffix=".ogg")
    with pytest.raises(ValueError, match=r"bass\.ogg has 35100 samples"):
        index(tmp_path, ["drums", "bass"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"noise" * 99, "can't be decoded"),
        (None, "is truncated"),
    ],
)
@pytest.mark.parametrize("stem", ["vocals", "mixture"])
def test_damaged_stems_are_named(tmp_path, song, stem, content, message):
    song(tmp_path / "a", (*SOURCES, "mixture"))
    song(tmp_path / "b")
    path = tmp_path / "a" / f"{stem}.wav"
    path.write_bytes(path.read_bytes()[:999] if content is None else content)
    with pytest.raises(ValueError, match=rf"a/{stem}\.wav {message}"):
        index(tmp_path)
    assert not (tmp_path / INDEX).exists()


def test_zero_length_stems_are_named(tmp_path, song):
    song(tmp_path / "a")
    song(tmp_path / "a", ["bass"], frames=0)
    with pytest.raises(ValueError, match=r"a/bass\.wav holds no audio"):
        index(tmp_path)


def test_not_a_number_is_named(tmp_path, song):
    song(tmp_path / "a")
    wrong = np.full((4000, 2), np.nan, dtype=np.float32)
    soundfile.write(tmp_path / "a" / "mixture.wav", wrong, 8000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"NaN or infinite values in .*a/mixture\.wav"):
        index(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("mixed", [True, False])
def test_not_a_number_in_a_stem_beside_a_clean_mixture_is_named(
    tmp_path, song, monkeypatch, mixed, value
):
    monkeypatch.setattr(tracks, "BLOCK", 1000)
    song(tmp_path / "a", (*SOURCES, "mixture") if mixed else SOURCES, subtype="FLOAT")
    assert len(index(tmp_path)) == 1
    wrong = samples(tmp_path / "a" / "vocals.wav")
    wrong[3999, 1] = value
    soundfile.write(tmp_path / "a" / "vocals.wav", wrong, 8000, subtype="FLOAT")
    os.utime(tmp_path / "a" / "vocals.wav", ns=(1, 1))
    message = r"^NaN or infinite values in [^,]*a/vocals\.wav: it is no usable recording\.$"
    for _ in range(2):  # and it is not in the index
        with pytest.raises(ValueError, match=message):
            index(tmp_path)


def test_a_source_that_no_track_has(tmp_path, song):
    song(tmp_path / "a", ["voice", "mixture"])
    song(tmp_path / "b", ["rest"])
    require_stems(find_tracks(tmp_path), ["rest", "voice"], folder=tmp_path)
    with pytest.raises(ValueError, match="has a stem 'piano': the stems there are rest, voice"):
        require_stems(find_tracks(tmp_path), ["rest", "piano"], folder=tmp_path)
