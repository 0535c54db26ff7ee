"""Damaged files by the hundred: each gives finite samples or one sentence, soon, in little memory.

The damage is real headers and bodies that are cut, overwritten, shortened, lengthened, or told that
they are of some absurd size. It happens in a process of its own, so that a decoder that crashes or
hangs fails the test, and the memory is measured.
"""

import json
import random
import subprocess
import sys
from pathlib import Path

import soundfile
import torch

from demucs_lightning import audio
from demucs_lightning.audio import Encoding, StemWriter
from tests.audio.sounds import tones
from tests.memory import peak

COUNT = 480
ABSURD = [0, 1, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]
ENTRY = """
import sys
from tests.audio.test_fuzz import decode_all
decode_all(sys.argv[1])
"""


def originals(folder: Path) -> dict[str, bytes]:
    """A real file of each format, by its suffix."""
    samples = tones(2, 4000)
    for suffix in (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".aiff", ".opus"):
        audio.write(folder / f"x{suffix}", samples, samplerate=44_100)
    with StemWriter(folder / "x.stem.mp4", samplerate=44_100, channels=2, stems=["a"]) as to:
        to.write(samples.expand(2, -1, -1))
    how = Encoding(subtype="FLOAT")
    with audio.writer(folder / "x.float.wav", samplerate=8000, channels=2, encoding=how) as writer:
        writer.write(samples)
    for suffix in (".w64", ".caf", ".au"):
        soundfile.write(folder / f"x{suffix}", samples.T.numpy(), 44_100)
    return {path.name[1:]: path.read_bytes() for path in sorted(folder.iterdir())}


def damaged(content: bytes, chance: random.Random) -> bytes:
    """One kind of damage, or two."""
    found = bytearray(content)
    for _ in range(chance.choice([1, 1, 2])):
        near = chance.randrange(min(len(found), 160) or 1)
        far = chance.randrange(len(found) or 1)
        match chance.randrange(7):
            case 0:
                del found[far:]
            case 1:
                found[near : near + 4] = chance.randbytes(4)
            case 2:
                for _ in range(chance.randrange(1, 40)):
                    place = chance.randrange(len(found) or 1)
                    found[place : place + 1] = chance.randbytes(1)
            case 3:
                width, order = chance.choice([(2, "little"), (4, "little"), (4, "big"), (8, "big")])
                number = chance.choice(ABSURD) % 2 ** (8 * width)
                found[near : near + width] = number.to_bytes(width, order)
            case 4:
                del found[far : far + chance.randrange(1, 400)]
            case 5:
                found[near:near] = chance.randbytes(chance.randrange(1, 300))
            case _:
                found[far : far + 8] = chance.choice(ABSURD).to_bytes(8, "big")
    return bytes(found)


def decode(path: Path) -> str:
    """Look at a file in every way; "" where it decodes, or else what is said of it."""
    said = ""
    ways = [
        lambda: audio.info(path),
        lambda: list(audio.stream(path, block=4096)),
        lambda: list(audio.stream(path, block=4096, samplerate=16_000, channels=1)),
        lambda: audio.read(path)[0],
        lambda: audio.tags(path),
        lambda: audio.stem_names(path),
    ]
    for way in ways:
        try:
            found = way()
        except (ValueError, OSError) as error:
            said = str(error)
            assert said.startswith(str(path)), said
            assert said.endswith("."), said
            assert "\n" not in said, said
        else:
            for block in found if isinstance(found, list) else []:
                assert isinstance(block, str) or torch.isfinite(block).all()
    return said


def decode_all(folder: str) -> None:
    """What a process of its own does: damage, decode, report."""
    import time

    torch.set_num_threads(1)
    place = Path(folder)
    (place / "real").mkdir()
    files = originals(place / "real")
    base = peak()
    said, slowest = [], 0.0
    for number in range(COUNT):
        chance = random.Random(number)
        suffix = chance.choice(sorted(files))
        path = place / f"{number}{suffix}"
        path.write_bytes(damaged(files[suffix], chance))
        start = time.process_time()
        said.append(decode(path))
        slowest = max(slowest, time.process_time() - start)
        path.unlink()
    grown = peak() - base
    sys.stdout.write(json.dumps({"said": said, "slowest": slowest, "grown": grown}))


def test_damaged_files(tmp_path):
    command = [sys.executable, "-c", ENTRY, str(tmp_path)]
    root = Path(__file__).parents[2]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout)
    assert len(found["said"]) == COUNT
    refused = sum(map(bool, found["said"]))
    assert COUNT // 4 < refused < COUNT, "some are refused, and some of the damage does no harm"
    assert found["slowest"] < 5
    assert found["grown"] < 300_000  # kilobytes
