"""Two writes of the same audio give the same Ogg file, which is still a whole one."""

import pytest

from demucs_lightning import audio
from demucs_lightning.audio import ogg
from tests.audio.sounds import same_sound, tones


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
