"""What each option does; those of the reference's command mean what they mean there."""

import logging
from pathlib import Path
from typing import Any

import demucs.api
import demucs.separate
import pytest
import torch

from demucs_lightning import audio, commands, pretrained
from demucs_lightning.commands import tracks
from demucs_lightning.commands.flags import parser
from demucs_lightning.pretrained import released
from tests.audio.sounds import tones
from tests.pretrained.conftest import reference_model
from tests.separate_command.places import stems, written
from tests.separator.models import FOUR, RATE, Shares, noise, small_file


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
    code, _, err = run(songs / "a.wav", *flags)
    said = "stem.mp4 can't hold 8000 Hz: these stems have 44100 Hz.\n"
    assert (code, err) == (0, said if "stem.mp4" in flags else "")
    assert written() == files


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


def flags_of(top) -> set[str]:
    return {name for action in top._actions for name in action.option_strings}


def test_the_flags_of_the_reference_are_all_there():
    theirs = flags_of(demucs.separate.get_parser())
    assert theirs <= flags_of(parser())
    given = [
        "x.wav",
        "--int24",
        "--mp3",
        "--two-stems",
        "bass",
        "-j",
        "2",
        "-d",
        "cpu",
        "-n",
        "mdx",
    ]
    ours, reference = parser().parse_args(given), demucs.separate.get_parser().parse_args(given)
    assert list(map(Path, ours.tracks)) == reference.tracks
    assert (Path(ours.out), ours.name) == (reference.out, reference.name)
    assert (ours.shifts, ours.overlap) == (reference.shifts, reference.overlap)
    assert (ours.clip_mode, ours.other_method) == (reference.clip_mode, reference.other_method)


EXCLUDE = "exclude one another: leave one of them out."
LACKS = "{} needs a value behind it."


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["-n", "mdx", "-s", "955717e8"], f"--sig and --name {EXCLUDE}"),
        (["--segment", "5", "--no-split"], f"--no-split and --segment {EXCLUDE}"),
        (["--int24", "--float32"], f"--float32 and --int24 {EXCLUDE}"),
        (["--mp3", "--flac"], f"--flac and --mp3 {EXCLUDE}"),
        (["--mp3", "--format", "ogg"], f"--format and --mp3 {EXCLUDE}"),
        (["--stems", "bass", "--two-stems", "bass"], f"--two-stems and --stems {EXCLUDE}"),
        (["--skip-existing", "--overwrite"], f"--overwrite and --skip-existing {EXCLUDE}"),
        (["--mp3-preset", "8"], "--mp3-preset is 8: it must be one of 2, 3, 4, 5, 6, 7."),
        (["--clip-mode", "tanh"], "--clip-mode is 'tanh': it must be one of rescale, clamp, none."),
        (["--precision", "8"], "--precision is '8': it must be one of auto, fp32, bf16, fp16."),
        (["--shifts", "two"], "--shifts is 'two': it must be a whole number."),
        (["--segment", "long"], "--segment is 'long': it must be a number."),
        (["--bitrate", "1.5"], "--mp3-bitrate is '1.5': it must be a whole number."),
        (["--overlap"], LACKS.format("--overlap")),
        (["-o"], LACKS.format("--out")),
        (["--flac=yes"], "--flac takes no value: leave 'yes' out."),
        (["--overlpa", "0.1"], "There is no option --overlpa: did you mean --overlap?"),
        (["--quiet"], "There is no option --quiet: --help lists those that there are."),
        (["--s"], "--s is the beginning of --sig, --shifts, --segment, --seed, --stems, "
         "--skip-existing: write the one that is meant in full."),
    ],
)  # fmt: skip
def test_flags_that_can_not_be_are_one_sentence(run, songs, cheap, flags, said):
    code, out, err = run(songs / "a.wav", *flags)
    assert (code, out, err) == (2, "", f"error: {said}\n")
    assert written() == set()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["compare"], "The command line lacks"),
        (["bag"], "The command line lacks"),
        (["export", "x"], "The command line lacks OUT: --help says what each is."),
        (["export", "x", "y", "z"], "z is too much: --help says what may stand here."),
        (["evaluate", "x", "--subset", "7"], "--subset is '7': it must be one of "),
        (["models", "remoove"], "{list,download,remove} is 'remoove': it must be one of list, "),
        (["models", "list", "--jsn"], "There is no option --jsn: did you mean --json?"),
        (["train", "--epoch", "9"], "There is no option --epoch: --help lists"),
    ],
)
def test_the_flags_of_all_commands(capsys, argv, said):
    with pytest.raises(SystemExit) as caught:
        commands.main(argv)
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert err.startswith(f"error: {said}")
    assert len(err.splitlines()) == 1


def test_a_signature_is_a_single_model(run, songs, cheap, weights):
    assert run(songs / "a.wav", "-s", "955717e8")[0] == 0
    assert written() == stems("separated/955717e8/a")
    code, _, err = run(songs / "a.wav", "-s", "htdemucs_ft")
    assert code == 1
    assert "no single model has this signature" in err


def test_a_signature_in_a_local_folder(run, songs, tmp_path):
    small_file(tmp_path / "0a1b2c3d.th")
    (tmp_path / "both.yaml").write_text("models: ['0a1b2c3d', '0a1b2c3d']")
    assert run(songs / "a.wav", "--sig", "0a1b2c3d", "--repo", tmp_path)[0] == 0
    assert written() == stems("separated/0a1b2c3d/a")
    code, _, err = run(songs / "a.wav", "--sig", "both", "--repo", tmp_path)
    assert code == 1
    assert f"no single model in {tmp_path} has this signature" in err
    assert run(songs / "a.wav", "--name", "both", "--repo", tmp_path)[0] == 0


def test_two_stems_are_one_and_the_rest(run, songs, cheap):
    mixture = audio.read(songs / "a.wav")[0]
    flags = ["--two-stems", "bass", "--float32"]
    for method, name, rest in (("add", "no_bass", 0.6875), ("minus", "minus_bass", 0.75)):
        assert run(songs / "a.wav", *flags, "--other-method", method, "-o", method)[0] == 0
        found = audio.read(f"{method}/htdemucs/a/{name}.wav")[0]
        torch.testing.assert_close(found, rest * mixture, atol=5e-3, rtol=0)
        found = audio.read(f"{method}/htdemucs/a/bass.wav")[0]
        torch.testing.assert_close(found, 0.25 * mixture, atol=5e-3, rtol=0)


def test_the_seed_is_that_of_the_shifts(run, songs, weights):
    for out, *flags in (
        ["a", "--seed", 1, "--shifts", 2],
        ["b", "--seed", 1, "--shifts", 2],
        ["c", "--seed", 2, "--shifts", 2],
        ["d", "--seed", 1, "--shifts", 0],
        ["e", "--seed", 2, "--shifts", 0],
    ):
        assert run(songs / "a.wav", "-n", weights, "--float32", *flags, "-o", out)[0] == 0
    a, b, c, d, e = (Path(f"{out}/small/a/bass.wav").read_bytes() for out in "abcde")
    assert a == b
    assert a != c
    assert d == e


@pytest.mark.parametrize(
    ("flags", "other"),
    [
        (["--overlap", 0], ["--overlap", 0.9]),
        (["--segment", 0.5], ["--segment", 1.25]),
        (["--segment", 0.5], ["--no-split"]),
        (["--precision", "fp32"], ["--precision", "bf16"]),
    ],
)
def test_what_changes_the_sound_a_little(run, songs, weights, flags, other):
    for out, each in (("a", flags), ("b", other)):
        assert run(songs / "a.wav", "-n", weights, "--float32", *each, "-o", out)[0] == 0
    first, second = (audio.read(f"{out}/small/a/bass.wav")[0] for out in "ab")
    assert not torch.equal(first, second)
    assert (first - second).abs().max() < first.abs().max()


def test_no_split_is_one_piece(run, songs, cheap):
    audio.write(songs / "a.wav", noise(2, 5 * RATE), samplerate=RATE)
    lengths = []
    forward = Shares.forward
    cheap.forward = lambda mixture: lengths.append(mixture.shape[-1]) or forward(cheap, mixture)
    assert run(songs / "a.wav", "--no-split", "--shifts", 0)[0] == 0
    assert len(lengths) == 1
    assert lengths[0] >= 5 * RATE


def test_no_split_and_a_transformer(run, songs, tmp_path):
    model: Any = reference_model("HTDemucs")
    package = pretrained.Package("HTDemucs", model._init_args_kwargs[1], model.state_dict(), "x")
    pretrained.write(package, tmp_path / "x.th", half=False)
    longest = float(model.segment)
    rate = model.samplerate
    flags = ["-n", tmp_path / "x.th", "--no-split", "--shifts", 0, "--float32"]
    audio.write(songs / "a.wav", noise(2, int(1.5 * longest * rate)), samplerate=rate)
    code, _, err = run(songs / "a.wav", *flags)
    assert code == 1
    assert err == (
        f"error: {songs / 'a.wav'}: A recording of {1.5 * longest:.1f} seconds can't go in one "
        f"piece: the model takes {longest:.1f} at most, as long as it was trained on; without "
        "--no-split it is taken in chunks.\n"
    )
    assert written() == set()
    samples = noise(2, int(0.7 * longest * rate))
    audio.write(songs / "a.wav", samples, samplerate=rate, subtype="FLOAT")
    assert run(songs / "a.wav", *flags)[0] == 0
    reference = demucs.api.Separator("x", tmp_path, "cpu", shifts=0, split=False)
    for name, stem in reference.separate_audio_file(songs / "a.wav")[1].items():
        found = audio.read(f"separated/x/a/{name}.wav")[0]
        assert (found - stem).abs().max() < 1e-4 * max(1, stem.abs().max()), name


def test_bit_rates_and_presets(run, songs, cheap):
    cheap.samplerate = 44_100
    audio.write(songs / "a.wav", noise(2, 44_100), samplerate=44_100)
    for out, flags in (("a", ["--mp3-bitrate", 64]), ("b", []), ("c", ["--mp3-preset", 7])):
        assert run(songs / "a.wav", "--mp3", *flags, "-o", out)[0] == 0
    a, b, c = (Path(f"{out}/htdemucs/a/drums.mp3").read_bytes() for out in "abc")
    assert len(b) / len(a) == pytest.approx(5, rel=0.1)
    assert len(c) == len(b)
    assert c != b


def test_verbose_tells_more(run, songs, cheap, monkeypatch):
    levels = []
    monkeypatch.setattr("logging.basicConfig", lambda **settings: levels.append(settings["level"]))
    assert run(songs / "a.wav")[0] == 0
    assert run(songs / "a.wav", "-v", "--overwrite")[0] == 0
    assert levels == [logging.WARNING, logging.INFO]


def test_all_released_models_are_listed(capsys):
    commands.main(["separate", "--list-models"])
    listed = capsys.readouterr().out.split()
    assert {*released.RELEASED, *released.OFFICIAL} <= {*listed}
