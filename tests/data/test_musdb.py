"""The two MUSDB18 sets: which tracks belong to which subset, what is missing, and the download."""

import hashlib
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from demucs_lightning import audio
from demucs_lightning.data import Musdb7s, MusdbHQ, normalized
from demucs_lightning.data.musdb import MUSDB18_7S, MUSDB18_HQ, SOURCES, VALIDATION, Archive
from tests.audio.sounds import stempeg_song

STEMS = (*SOURCES, "mixture")
TRAIN = ("One", "Two", "Leaf - Summerghost", "ANiMAL - Rockshow", "Three")


@pytest.fixture
def root(tmp_path, song) -> Path:
    for number, name in enumerate(TRAIN):
        song(tmp_path / "train" / name, STEMS, frames=4000 + 10 * number)
    song(tmp_path / "test" / "Four", STEMS)
    return tmp_path


def names(dataset: MusdbHQ) -> list[str]:
    return [track.name for track in dataset.tracks]


def test_facts_of_the_sets():
    assert len(VALIDATION) == 14
    assert (MUSDB18_HQ.filename, MUSDB18_HQ.size) == ("musdb18hq.zip", 22_656_664_047)
    assert (MUSDB18_7S.filename, MUSDB18_7S.size) == ("MUSDB18-7-STEMS.zip", 147_209_385)


@pytest.mark.parametrize(
    ("subset", "expected"),
    [
        ("training", ["One", "Three", "Two"]),
        ("training_all", sorted(TRAIN)),
        ("validation", ["ANiMAL - Rockshow", "Leaf - Summerghost"]),
        ("test", ["Four"]),
    ],
)
def test_subsets(root, subset, expected):
    dataset = MusdbHQ(root, subset, samplerate=8000)
    assert names(dataset) == expected
    assert dataset.sources == list(SOURCES)
    assert dataset[0]["mixture"].shape[0] == 2
    assert dataset[0]["track"] == expected[0]


def test_arguments_reach_the_extracts(root):
    dataset = MusdbHQ(root, "test", ["vocals"], False, 0.25, 0.1, False, 4000, 1)
    assert len(dataset) == 4
    item = dataset[0]
    assert item["stems"].shape == (1, 1, 1000)
    assert (item["mean"], item["std"]) == (0, 1)
    vocals = audio.read(root / "test" / "Four" / "vocals.wav")[0]
    expected = audio.resample(vocals.mean(0, keepdim=True), old=8000, new=4000)[:, :1000]
    assert torch.equal(normalized(item)[0], expected)


def test_another_suffix(tmp_path, song):
    song(tmp_path / "test" / "A", STEMS, suffix=".flac")
    assert names(MusdbHQ(tmp_path, "test", samplerate=8000, ext=".flac")) == ["A"]
    with pytest.raises(ValueError, match="has a stem 'drums': the stems there are none"):
        MusdbHQ(tmp_path, "test")


@pytest.mark.parametrize("make", [(), ("",), ("train",)])
def test_a_missing_or_empty_root(tmp_path, make):
    root = tmp_path / "data"
    for folder in make:
        (root / folder).mkdir(parents=True)
    with pytest.raises(FileNotFoundError) as caught:
        MusdbHQ(root)
    message = str(caught.value)
    assert f"<track>/drums.wav and so on was looked for in {root / 'train'}" in message
    assert "download=True" in message


def test_a_subset_without_tracks(tmp_path, song):
    song(tmp_path / "train" / "One", STEMS)
    with pytest.raises(FileNotFoundError, match="No validation tracks of MUSDB18-HQ"):
        MusdbHQ(tmp_path, "validation")


def test_what_is_missing_or_unknown_is_named(root):
    with pytest.raises(ValueError, match="subset='valid' is unknown: it is one of training"):
        MusdbHQ(root, "valid")
    with pytest.raises(ValueError, match="has a stem 'piano': .* bass, drums, other, vocals"):
        MusdbHQ(root, sources=["drums", "piano"])
    (root / "train" / "Two" / "bass.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"train/Two/bass\.wav is missing: every track"):
        MusdbHQ(root)
    (root / "train" / "New").mkdir()
    with pytest.raises(FileNotFoundError, match=r"train/New/drums\.wav is missing"):
        MusdbHQ(root)


class Requests(SimpleHTTPRequestHandler):
    seen: list[str] = []

    def do_GET(self) -> None:
        self.seen.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args) -> None:
        pass


@pytest.fixture
def serve(tmp_path) -> Iterator[Callable[..., Archive]]:
    """Offer files under names as a zip on the loopback; returns what a data set needs to know."""
    folder = tmp_path / "server"
    folder.mkdir()
    Requests.seen.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Requests, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()

    def offer(filename: str, files: dict[str, Path]) -> Archive:
        path = folder / filename
        with zipfile.ZipFile(path, "w") as file:
            for name, source in files.items():
                file.write(source, name)
        content = path.read_bytes()
        url = f"http://127.0.0.1:{server.server_port}/{filename}"
        return Archive("MUSDB18-HQ", url, len(content), hashlib.md5(content).hexdigest())

    yield offer
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("top", ["", "musdb18hq/"])
def test_download(tmp_path, song, serve, monkeypatch, top):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("nothing is asked"))
    song(tmp_path / "A", STEMS)
    homes = ("train/A", "train/Leaf - Summerghost", "test/B")
    wanted = {f"{top}{home}/{s}.wav": tmp_path / "A" / f"{s}.wav" for home in homes for s in STEMS}
    monkeypatch.setattr(MusdbHQ, "archive", serve("musdb18hq.zip", wanted))
    root = tmp_path / "new" / "root"
    dataset = MusdbHQ(root, download=True, samplerate=8000)
    assert names(dataset) == ["A"]
    assert not (root / "musdb18hq.zip").exists()
    assert Requests.seen == ["/musdb18hq.zip"]
    for subset, expected in (("validation", ["Leaf - Summerghost"]), ("test", ["B"])):
        assert names(MusdbHQ(root, subset, download=True, samplerate=8000)) == expected
    assert Requests.seen == ["/musdb18hq.zip"], "the set was there already"


@pytest.mark.parametrize("top", ["", "musdb18hq/"])
@pytest.mark.parametrize("present", [("train", "test"), ("test",)])
def test_empty_folders_are_no_set(tmp_path, song, serve, monkeypatch, top, present):
    song(tmp_path / "A", STEMS)
    homes = ("train/A", "test/B")
    wanted = {f"{top}{home}/{s}.wav": tmp_path / "A" / f"{s}.wav" for home in homes for s in STEMS}
    monkeypatch.setattr(MusdbHQ, "archive", serve("musdb18hq.zip", wanted))
    root = tmp_path / "root"
    for folder in present:
        (root / folder).mkdir(parents=True)
    assert names(MusdbHQ(root, download=True, samplerate=8000)) == ["A"]
    assert names(MusdbHQ(root, "test", samplerate=8000)) == ["B"]


def test_a_folder_in_the_way_is_said_before_the_download(tmp_path, song, serve, monkeypatch):
    song(tmp_path / "A", STEMS)
    offered = serve("musdb18hq.zip", {"train/A/drums.wav": tmp_path / "A" / "drums.wav"})
    monkeypatch.setattr(MusdbHQ, "archive", offered)
    (tmp_path / "root" / "test" / "note").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"root/test is there but holds no track: move it"):
        MusdbHQ(tmp_path / "root", download=True)
    assert Requests.seen == []
    assert (tmp_path / "root" / "test" / "note").is_dir()


def test_a_zip_of_the_users_own_is_used_and_kept(tmp_path, song, serve, monkeypatch):
    song(tmp_path / "A", STEMS)
    wanted = {f"{h}/A/{s}.wav": tmp_path / f"A/{s}.wav" for h in ("train", "test") for s in STEMS}
    monkeypatch.setattr(MusdbHQ, "archive", serve("musdb18hq.zip", wanted))
    root = tmp_path / "root"
    root.mkdir()
    (root / "musdb18hq.zip").write_bytes((tmp_path / "server" / "musdb18hq.zip").read_bytes())
    assert names(MusdbHQ(root, download=True, samplerate=8000)) == ["A"]
    assert (root / "musdb18hq.zip").exists()
    assert not Requests.seen


def test_a_wrong_zip_changes_nothing(tmp_path, song, serve, monkeypatch):
    song(tmp_path / "A", STEMS)
    archive = serve("musdb18hq.zip", {"train/A/drums.wav": tmp_path / "A" / "drums.wav"})
    monkeypatch.setattr(MusdbHQ, "archive", archive._replace(md5="0" * 32))
    with pytest.raises(ValueError, match="md5"):
        MusdbHQ(tmp_path / "root", download=True)
    assert not (tmp_path / "root" / "train").exists()


def test_seven_seconds_of_a_real_song(tmp_path, serve, monkeypatch):
    wanted = {f"{part}/A - Song.stem.mp4": stempeg_song() for part in ("train", "test")}
    monkeypatch.setattr(Musdb7s, "archive", serve("MUSDB18-7-STEMS.zip", wanted))
    root = tmp_path / "root"
    dataset = Musdb7s(root, download=True, segment=3, shift=1)
    assert names(dataset) == ["A - Song"]
    assert len(dataset) == 5
    item = dataset[2]
    assert item["stems"].shape == (4, 2, 3 * 44100)
    for stem, number in zip(item["stems"], range(1, 5), strict=True):
        expected = audio.read(stempeg_song(), start=2 * 44100, frames=3 * 44100, stream=number)[0]
        assert torch.equal(stem, expected)
    mono = audio.read(stempeg_song())[0].mean(0)
    assert item["mean"] == pytest.approx(mono.mean().item(), abs=1e-7)
    assert item["std"] == pytest.approx(mono.std().item(), rel=1e-5)
    with pytest.raises(ValueError, match="segment=11 is longer than every track"):
        Musdb7s(root, segment=11)
    with pytest.raises(FileNotFoundError, match=r"<track>\.stem\.mp4 was looked for"):
        Musdb7s(root, "validation")
