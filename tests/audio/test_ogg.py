"""Two writes of the same audio give the same Ogg file, which is still a whole one."""

import pytest

from demucs_lightning import audio
from demucs_lightning.audio import Tags, ogg
from tests.audio.sounds import same_sound, tones
from tests.audio.test_metadata import png


def bit_by_bit(page: bytes) -> int:
    register = 0
    for byte in page:
        register ^= byte << 24
        for _ in range(8):
            register = (register << 1) ^ (0x104C11DB7 if register >> 31 else 0)
    return register


def test_the_checksum():
    page = bytes(range(256)) * 3
    assert ogg.checksum(page) == bit_by_bit(page)


@pytest.mark.parametrize("suffix", [".ogg", ".opus"])
def test_two_files_are_the_same(tmp_path, suffix):
    sound = tones(2, 96_000, 48_000)
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    for path in (first, second):
        audio.write(path, sound, samplerate=48_000)
    content = first.read_bytes()
    assert content == second.read_bytes()
    assert content[14:18] == bytes(4)
    found, rate = audio.read(first)
    assert rate == 48_000
    assert same_sound(found[:, : sound.shape[-1]], sound)


@pytest.mark.parametrize("more", [0, 1, 65_025, 300_000])
def test_comments_over_many_pages(tmp_path, more):
    """A cover as large as it takes to fill a page, and several."""
    path, plain = tmp_path / "a.ogg", tmp_path / "b.ogg"
    cover = png() + bytes(range(1, 256)) * (more // 255)
    given = Tags(title="x", cover=cover, cover_mime="image/png")
    with audio.writer(path, samplerate=44_100, channels=2, tags=given) as to:
        to.write(tones())
    audio.write(plain, tones(), samplerate=44_100)
    assert audio.tags(path) == given
    assert (audio.read(path)[0] == audio.read(plain)[0]).all()
    content = path.read_bytes()
    assert sum(map(len, ogg._whole_pages(path))) == len(content), "every page's sum is right"
    assert b"DATE=x" not in content


@pytest.mark.parametrize("text", ["y", "音" * 100])
def test_the_shortest_comment(tmp_path, text):
    path = tmp_path / "a.ogg"
    with audio.writer(path, samplerate=8000, channels=1, tags=Tags(date=text)) as to:
        to.write(tones(1))
    assert audio.tags(path) == Tags(date=text)
