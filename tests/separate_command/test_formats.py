"""What files hold: rate, depth, tags and covers, sums that are exact, and the same every time."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from demucs_lightning import audio
from tests.audio.test_metadata import png
from tests.separate_command.places import mode, stems, written
from tests.separator.models import RATE, noise


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


def test_the_exact_sum(run, songs, weights):
    assert run(songs / "a.wav", "-n", weights, "--exact-sum")[0] == 0
    read = [soundfile.read(path, dtype="int16")[0].astype(int) for path in sorted(written())]
    assert np.array_equal(sum(read), soundfile.read(songs / "a.wav", dtype="int16")[0])


def test_flac_has_no_floats(run, songs, cheap, caplog):
    assert run(songs / "a.wav", "--flac", "--float32")[0] == 0
    said = [record.message for record in caplog.records]
    assert said == ["flac can't hold FLOAT samples: stems have 24 bits."]
    assert {mode(path) for path in written()} == {(RATE, "PCM_24")}


def test_settings_that_a_format_has_not_are_left_out(run, songs, cheap, caplog):
    assert run(songs / "a.wav", "--mp3", "--int24")[0] == 0
    assert run(songs / "a.wav", "--mp3-bitrate", 320, "--mp3-preset", 2)[0] == 0
    said = [record.message.partition(":")[0] for record in caplog.records]
    assert said == [f"{form} has no such thing as a {what}" for form, what in
                    (("mp3", "depth"), ("wav", "bit rate"), ("wav", "preset"))]  # fmt: skip
    assert written() == stems("separated/htdemucs/a", ext="mp3") | stems("separated/htdemucs/a")


@pytest.mark.parametrize("form", sorted(audio.FORMATS))
def test_two_runs_give_the_same_files(run, songs, weights, form):
    flags = ["-n", weights, "--shifts", 2, "--seed", 5, "--format", form.removeprefix(".")]
    for out in "ab":
        assert run(songs / "a.wav", *flags, "-o", out)[0] == 0
    first, second = (
        {path.name: path.read_bytes() for path in Path(out).rglob("*") if path.is_file()}
        for out in "ab"
    )
    assert len(first) == (1 if form == ".stem.mp4" else 4)
    assert first == second


@pytest.mark.parametrize(
    ("precision", "form"), [("fp32", "wav"), ("bf16", "wav"), ("fp32", "flac"), ("fp32", "aiff")]
)
@pytest.mark.parametrize("depth", [16, 24, 32])
def test_the_sum_is_exact_at_every_depth(run, songs, weights, precision, form, depth):
    if (form, depth) == ("flac", 32):
        depth = 24
    subtype = f"PCM_{depth}"
    audio.write(songs / f"a.{form}", noise(2, 30_000), samplerate=RATE, subtype=subtype)
    flags = ["-n", weights, "--precision", precision, "--format", form, "--exact-sum"]
    assert run(songs / f"a.{form}", *flags)[0] == 0
    assert {mode(path) for path in written()} == {(RATE, subtype)}
    read = [soundfile.read(path, dtype="int32")[0].astype(np.int64) for path in written()]
    assert np.array_equal(sum(read), soundfile.read(songs / f"a.{form}", dtype="int32")[0])


def test_a_sum_that_can_not_be_exact_is_told(run, songs, cheap):
    audio.write(songs / "a.wav", noise(2, 3000), samplerate=RATE, subtype="PCM_32")
    said = "The track is read with 24 of its 32 bits, and its stems sum up to that.\n"
    assert run(songs / "a.wav", "--exact-sum")[2] == said
    assert run(songs / "a.wav", "--overwrite")[2] == ""


TEXTS = audio.Tags(title="Ärger 音", artist="A/B", album="C", track="3", date="1999")


KINDS = ["flac", "mp3", "m4a", "ogg", "opus", "wav", "aiff", "stem.mp4"]


@pytest.mark.parametrize(
    ("source", "form"), [*((kind, "flac") for kind in KINDS), *(("mp3", kind) for kind in KINDS)]
)
def test_tags_and_cover_are_carried_over(run, songs, cheap, source, form):
    given = replace(TEXTS, cover=png(), cover_mime="image/png")
    path = songs / f"x.{source}"
    settings: dict[str, Any] = {"samplerate": RATE, "channels": 2, "tags": given}
    samples = noise(2, 4000).clamp(-1, 1)
    if source == "stem.mp4":
        with audio.StemWriter(path, stems=["a"], **settings) as to:
            to.write(samples.expand(2, -1, -1))
    else:
        with audio.writer(path, **settings) as to:
            to.write(samples)
    cheap.sources, cheap.gains = ["a", "b"], (0.5, 0.5)
    assert run(path, "--format", form)[0] == 0
    for file in written():
        assert audio.tags(file) == given, file


def test_a_track_without_tags_gives_none(run, songs, cheap):
    assert run(songs / "a.wav")[0] == 0
    assert {audio.tags(path) for path in written()} == {audio.Tags()}
