"""Too little memory, and too little room on the disk."""

from collections import namedtuple
from pathlib import Path

import pytest
import torch

from demucs_lightning import audio
from tests.separate_command.places import stems, written
from tests.separator.models import RATE, Shares, noise
from tests.separator.test_files import files_up_to


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


def free(monkeypatch, size: int) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(size))


def three(songs) -> list:
    """Tracks of which each needs the same: the floats between, 16 bits, and headers."""
    paths = [songs / f"{number}.wav" for number in range(3)]
    for path in paths:
        audio.write(path, noise(2, 50_000), samplerate=RATE)
    return paths


SPOOLED, WRITTEN = 4 * 4 * 2 * 50_000, 4 * (2 * 2 * 50_000 + 2**16)  # bytes of such a track


def test_the_room_for_all_tracks_is_checked_before(run, songs, cheap, monkeypatch):
    tracks = three(songs)
    needed = 3 * WRITTEN + SPOOLED
    free(monkeypatch, needed - 1)
    for flags in ([], ["--dry-run"]):
        code, _, err = run(*tracks, *flags)
        assert code == 1
        assert "4.8 MB are needed to separate 3 tracks, with room for stems that may clip" in err
        assert len(err.splitlines()) == 1
        assert written() == set()
        assert cheap.calls == 0
    free(monkeypatch, needed)
    assert run(*tracks)[0] == 0
    free(monkeypatch, WRITTEN - 1)
    for mode in ("clamp", "none"):  # which need less, as is said
        free(monkeypatch, WRITTEN - 1)
        err = run(tracks[0], "-o", mode, "--clip-mode", mode)[2]
        assert f"are needed to separate {tracks[0]}." in err
        free(monkeypatch, WRITTEN)
        assert run(tracks[0], "-o", mode, "--clip-mode", mode)[0] == 0


def test_what_is_there_needs_no_room(run, songs, cheap, monkeypatch):
    tracks = three(songs)
    assert run(*tracks[:2])[0] == 0
    free(monkeypatch, WRITTEN + SPOOLED)
    assert run(*tracks)[0] == 1, "two are there already"
    assert run(*tracks, "--skip-existing")[0] == 0
    # What is replaced goes when the new file is complete; headers are less than is counted.
    free(monkeypatch, WRITTEN + SPOOLED + 2 * 4 * 2**16)
    assert run(*tracks, "--overwrite")[0] == 0
    (Path("separated/htdemucs/0") / "bass.wav").unlink()
    free(monkeypatch, WRITTEN // 4 + SPOOLED)
    assert run(*tracks, "--skip-existing")[0] == 0


@pytest.mark.parametrize(("form", "kilobits"), [("mp3", 320), ("ogg", 320)])
def test_the_room_of_codecs(run, songs, cheap, monkeypatch, form, kilobits):
    tracks = three(songs)
    each = 4 * (round(50_000 / RATE * kilobits * 125 * 1.1) + 2**16)
    free(monkeypatch, 3 * each + SPOOLED - 1)
    code, _, err = run(*tracks, "--format", form)
    assert code == 1
    assert "to separate 3 tracks, with room" in err
    free(monkeypatch, 3 * each + SPOOLED)
    assert run(*tracks, "--format", form)[0] == 0


def test_a_track_too_large_alone_is_left_to_its_turn(run, songs, cheap, monkeypatch):
    tracks = three(songs)
    audio.write(tracks[1], noise(2, 500_000), samplerate=RATE)
    free(monkeypatch, 2 * WRITTEN + SPOOLED)
    code, out, err = run(*tracks)
    assert code == 1
    assert "3 tracks: 2 done, 1 failed." in out
    assert f"are needed to separate {tracks[1]}, with room" in err


def test_a_disk_that_fills_meanwhile(run, songs, cheap, monkeypatch):
    tracks = three(songs)
    forward = Shares.forward

    def filling(mixture):
        free(monkeypatch, 1000)
        return forward(cheap, mixture)

    cheap.forward = filling
    code, out, err = run(*tracks)
    assert code == 1
    assert "3 tracks: 1 done, 2 failed." in out
    assert err.count("has 1.0 kB free") == 2
