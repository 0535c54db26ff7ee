import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from demucs_lightning import Separator, audio
from demucs_lightning.separation import BagOfModels, Level, normalized, separate, statistics
from tests.audio.sounds import same_sound, tones
from tests.separator.models import FOUR, RATE, Shares, noise, small, small_file


@pytest.fixture(scope="module")
def model():
    return small()


@pytest.fixture(scope="module")
def separator(model):
    return Separator(model, device="cpu")


def joined(blocks):
    blocks = list(blocks)
    return {name: torch.cat([block[name] for block in blocks], dim=-1) for name in blocks[0]}


@pytest.mark.parametrize("kind", ["model", "bag", "file", "name of a file"])
def test_it_gives_what_the_engine_gives(kind, model, tmp_path):
    bag = BagOfModels([model, small(1)], [[1, 0, 1, 2], [0, 1, 1, 1]])
    file = small_file(tmp_path / "small.th")
    given = {"model": model, "bag": bag, "file": file, "name of a file": str(file)}[kind]
    mixture = noise() + 0.02
    engine = bag if kind == "bag" else model
    settings = {"shifts": 2, "overlap": 0.4, "segment": 1.2, "seed": 3}
    expected = normalized(lambda mixture: separate(engine, mixture, **settings))(mixture[None])[0]
    found = Separator(given, device="cpu", **settings).separate(mixture, RATE)
    assert list(found) == FOUR
    for stem, wanted in zip(found.values(), expected, strict=True):
        assert (stem - wanted).abs().max() < 1e-5 * expected.abs().max()


def test_the_same_seed_gives_the_same_stems(model):
    mixture = noise()
    first, again, other = (
        Separator(model, device="cpu", shifts=1, seed=seed).separate(mixture)["bass"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("channels", [1, 2, 3, 8])
@pytest.mark.parametrize("rate", [RATE, 3999, 44_100, 192_000])
@pytest.mark.parametrize("frames", [1, 2, 20_001])
def test_what_comes_in_comes_out(channels, rate, frames):
    separator = Separator(Shares(), device="cpu")
    stems = separator.separate(noise(channels, frames), rate)
    for stem in stems.values():
        assert stem.shape == (channels, frames)
        assert torch.isfinite(stem).all()


@pytest.mark.parametrize("rate", [RATE, 44_100])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("width", [1, 2])
def test_channels_and_rates_go_forth_and_back(rate, channels, width):
    mixture = tones(channels, 2 * rate, rate)
    stems = Separator(Shares(audio_channels=width), device="cpu").separate(mixture, rate)
    for gain, stem in zip(Shares().gains, stems.values(), strict=True):
        if rate == RATE:
            torch.testing.assert_close(stem, gain * mixture, atol=1e-5, rtol=0)
        else:
            error = stem / gain - mixture
            assert error[:, rate // 10 : -rate // 10].abs().max() < 1e-3
            assert same_sound(stem, mixture) > 0.9999


def test_pairs_of_channels_are_separated_each_by_itself(separator):
    mixture = torch.cat([noise(2, seed=1), 5 * noise(2, seed=2)])
    both = separator.separate(mixture)["other"]
    first, second = (separator.separate(pair)["other"] for pair in mixture.split(2))
    assert torch.equal(both, torch.cat([first, second]))


def test_mono_is_the_mean_of_what_becomes_of_both_channels(separator):
    mono = noise(1)
    expected = separator.separate(mono.expand(2, -1))["bass"].mean(0, keepdim=True)
    torch.testing.assert_close(separator.separate(mono)["bass"], expected)
    torch.testing.assert_close(separator.separate(mono[0])["bass"], expected)


@pytest.mark.parametrize("given", [np.float32, np.float64, np.int16, np.int32])
def test_arrays_of_any_kind(given, separator):
    steps = (noise().clamp(-1, 1) * 30_000).round()
    scale = {np.int32: 2**16}.get(given, 1)
    array = (steps.double().numpy() * scale).astype(given)
    if np.issubdtype(given, np.floating):
        array = array / given(2**15)
    expected = separator.separate(steps / 2**15)["drums"]
    torch.testing.assert_close(separator.separate(array)["drums"], expected)


def test_arrays_as_they_lie_in_memory():
    separator, steps = Separator(Shares(), device="cpu"), noise().numpy()
    expected = separator.separate(steps)["drums"]
    level = statistics([torch.from_numpy(steps)])
    for array in (steps.astype(">f4"), steps[:, ::-1].copy()[:, ::-1], np.asfortranarray(steps)):
        assert torch.equal(separator.separate(array)["drums"], expected)
        found = joined(separator.stream([array], level=level))["drums"]
        assert torch.allclose(found, expected, atol=1e-6)


def test_a_file_and_its_samples_give_the_same(separator, tmp_path):
    audio.write(tmp_path / "x.wav", noise(2, 50_000), samplerate=22_050)
    samples, rate = audio.read(tmp_path / "x.wav")
    expected = separator.separate(samples, rate)
    for name, stem in separator.separate(tmp_path / "x.wav").items():
        torch.testing.assert_close(stem, expected[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_silence_stays_silent(separator, rate):
    for stem in separator.separate(torch.zeros(2, 30_000), rate).values():
        assert not stem.any()


def test_only_what_is_asked_for_runs(model):
    unused = Shares()
    bag = BagOfModels([model, unused], [[1, 1, 1, 0], [0, 0, 0, 1]])
    separator = Separator(bag, device="cpu")
    assert list(separator.separate(noise(), stems=["bass", "drums"])) == ["bass", "drums"]
    assert list(separator.separate(noise(), two_stems="bass", other_method="minus"))
    assert bag.models[1].calls == 0


@pytest.mark.parametrize("rate", [RATE, 11_025])
def test_progress_goes_up_to_one(separator, rate):
    told = []
    separator.separate(noise(2, 200_000), rate, progress=told.append)
    assert told == sorted(set(told))
    assert told[-1] == 1.0
    assert len(told) > 5


def test_one_piece(model):
    whole = Separator(model, device="cpu", segment=torch.inf, shifts=2).separate(noise())
    expected = normalized(lambda x: separate(model, x, segment=60, shifts=2))(noise()[None])[0]
    torch.testing.assert_close(whole["other"], expected[2], atol=1e-6, rtol=0)


@pytest.mark.parametrize("rate", [RATE, 16_000])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_live(separator, rate, channels):
    mixture = noise(channels, 7 * rate + 11)
    level = statistics([audio.resample(mixture[:2], old=rate, new=RATE)])
    blocks = mixture.split(777, dim=-1)
    found = joined(separator.stream(blocks, rate, stems=["vocals"], level=level))
    assert list(found) == ["vocals"]
    assert found["vocals"].shape == mixture.shape
    if channels < 3:  # of three, the last has a level of its own
        expected = separator.separate(mixture, rate)["vocals"]
        torch.testing.assert_close(found["vocals"], expected, atol=1e-5, rtol=0)


def test_live_stems_come_before_the_recording_ends(separator):
    taken = 0

    def blocks():
        nonlocal taken
        for block in noise(2, 50 * RATE).split(RATE // 10, dim=-1):
            taken += 1
            yield block

    stems = separator.stream(blocks())
    assert next(stems)["bass"].shape[-1] > 0
    assert taken < 50  # of 500: about two chunks
    assert joined([*stems])["bass"].shape[-1] < 50 * RATE


def test_live_without_a_level_starts_from_the_first_chunk():
    separator = Separator(Shares(), device="cpu", shifts=0)
    for quiet in (0.0, 1e-3):  # silence is no level
        mixture = torch.cat([quiet * noise(2, 3 * RATE), noise(2, 3 * RATE)], dim=-1)
        found = joined(separator.stream(mixture.split(500, dim=-1)))["drums"]
        torch.testing.assert_close(found, mixture / 2, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ([torch.zeros(3)], "must be"),
        ([torch.zeros(2, 9000), torch.zeros(1, 5)], "same channels"),
        ([noise(2, 8000), torch.full((2, 8), torch.nan)], "second 1.000"),
        ([], "empty"),
        ("file.wav", "blocks is 'file.wav'"),
        (5, "blocks is 5"),
        ([np.array(["a"])], "The mixture is <U1"),
    ],
)
def test_live_blocks_that_are_none(separator, blocks, said):
    with pytest.raises(ValueError, match=said):
        list(separator.stream(blocks, level=Level(0, 1)))


@pytest.mark.parametrize("samplerate", [0, -5, "8000", math.nan])
def test_live_rates_that_are_none(separator, samplerate):
    with pytest.raises(ValueError, match=f"samplerate is {samplerate!r}"):
        separator.stream([noise(2, 9)], samplerate)


@pytest.mark.parametrize(("kind", "steps"), [(torch.int16, 2**15), (torch.int32, 2**31)])
def test_live_integers_are_scaled(separator, kind, steps):
    given = (0.1 * noise(2, 3 * RATE)).clamp(-1, 1).mul(steps / 2).to(kind)
    found = joined(separator.stream(given.split(999, dim=-1), level=Level(0, 1)))
    floats = (given.double() / steps).float()
    expected = joined(separator.stream(floats.split(999, dim=-1), level=Level(0, 1)))
    for name, stem in expected.items():
        assert torch.equal(found[name], stem), name
    with pytest.raises(ValueError, match=r"torch.uint8"):
        list(separator.stream([torch.zeros(2, 9, dtype=torch.uint8)]))


def test_the_model_that_is_given_stays_as_it_is(model):
    given = copy.deepcopy(model).train()
    separator = Separator(given, device="cpu")
    assert given.training
    assert not separator.model.training
    assert Separator(model, device="cpu").model is model
    assert separator.sources == FOUR
    assert (separator.samplerate, separator.audio_channels) == (RATE, 2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"device": "gpu7"}, "device is 'gpu7'"),
        ({"device": []}, "device is empty"),
        ({"device": "cuda:99"}, "CUDA device"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"overlap": 1.0}, "overlap"),
        ({"shifts": -1}, "shifts"),
        ({"segment": 0}, "segment"),
        ({"batch_size": 0}, "batch_size"),
        ({"overlap": None}, "overlap is None"),
        ({"overlap": float("nan")}, "overlap is nan"),
        ({"shifts": "a"}, "shifts is 'a'"),
        ({"shifts": 1001}, "shifts is 1001"),
        ({"segment": "4"}, "segment is '4'"),
        ({"seed": 2**64}, "seed is"),
        ({"seed": 0.5}, "seed is 0.5"),
    ],
)
def test_settings_that_do_not_fit(model, settings, said):
    with pytest.raises(ValueError, match=said):
        Separator(model, **{"device": "cpu", **settings})


def test_a_segment_longer_than_a_transformer_was_trained_for():
    model = Shares()
    model.max_segment = 1.0
    with pytest.raises(ValueError, match="at most 1 seconds"):
        Separator(model, device="cpu", segment=1.5)


def test_one_piece_that_is_too_long_for_a_transformer():
    model = Shares()
    model.max_segment = 3.0
    for shifts, most in ((0, 3.0), (1, 2.5)):
        separator = Separator(model, device="cpu", segment=math.inf, shifts=shifts)
        assert separator.separate(noise(2, int(most * RATE)))["bass"].shape[-1] == most * RATE
        with pytest.raises(ValueError, match=f"takes {most} at most.*segment=None it"):
            separator.separate(noise(2, int(most * RATE) + 1))


def test_what_is_no_model():
    with pytest.raises(ValueError, match="Linear is no separation model"):
        Separator(nn.Linear(1, 1), device="cpu")
    with pytest.raises(ValueError, match="There is no model"):
        Separator("htdemuks", device="cpu")


@pytest.mark.parametrize(
    ("source", "settings", "said"),
    [
        (torch.zeros(2, 0), {}, "must be"),
        (torch.zeros(1, 2, 9), {}, "must be"),
        (torch.zeros(9000, 2), {}, "transposed"),
        (torch.zeros(2, 9).bool(), {}, "torch.bool"),
        (torch.zeros(2, 9), {"samplerate": 5}, "samplerate is 5"),
        (torch.zeros(2, 9), {"samplerate": "44100"}, "samplerate is '44100'"),
        (torch.zeros(2, 9), {"samplerate": 44_100.5}, "samplerate is 44100.5"),
        (torch.tensor([[0.0] * 4000 + [torch.inf]]), {}, "NaN or infinite values at second 0.500"),
        (torch.tensor([[0.0] * 4000 + [1e30]]), {}, r"any sound \(1e\+30\) at second 0.500"),
        ([0.0, 1.0], {}, "a list"),
        ("x.wav", {"samplerate": 8000}, "leave samplerate out"),
        (torch.zeros(2, 9), {"stems": ["flute"]}, "no stem 'flute'"),
        (torch.zeros(2, 9), {"stems": []}, r"stems is \[\]: it must be a list of some of drums"),
        (torch.zeros(2, 9), {"stems": 5}, "stems is 5: it must be a list"),
        (torch.zeros(2, 9), {"stems": ["bass", "bass"]}, "stems names 'bass' twice"),
        (torch.zeros(2, 9), {"stems": ["bass"], "two_stems": "bass"}, "exclude"),
        (torch.zeros(2, 9), {"two_stems": "bass", "other_method": "x"}, "other_method"),
        (torch.zeros(2, 9), {"stems": ["bass"], "exact_sum": True}, "needs all"),
    ],
)
def test_recordings_and_choices_that_do_not_fit(separator, source, settings, said):
    with pytest.raises(ValueError, match=said):
        separator.separate(source, **settings)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_whole_numbers_that_nobody_has_scaled(model, precision):
    """Are as loud as any array can be that isn't refused, and the stems are as loud."""
    separator = Separator(model, device="cpu", precision=precision)
    stem, loud = (separator.separate(noise() * scale)["bass"] for scale in (1, 2**31))
    torch.testing.assert_close(loud / 2**31, stem, atol=1e-4, rtol=0)


def test_a_model_that_gives_nan():
    separator = Separator(Shares(gains=(1.0, torch.nan, 1.0, 1.0)), device="cpu")
    with pytest.raises(ValueError, match="NaN"):
        separator.separate(noise())


def test_bf16_is_near_fp32_and_ends_with_the_call(model):
    fine = Separator(model, device="cpu", precision="fp32").separate(noise())["other"]
    separator = Separator(model, device="cpu", precision="bf16")
    coarse = separator.separate(noise())["other"]
    error = (coarse - fine).square().sum() / fine.square().sum()
    assert 1e-9 < error < 1e-3
    for _ in separator.stream(noise(2, 9 * RATE).split(999, dim=-1)):
        assert not torch.is_autocast_enabled("cpu")


def test_several_devices(model):
    found = Separator(model, device=["cpu", "cpu"], batch_size=4).separate(noise(2, 60_000))
    expected = Separator(model, device="cpu").separate(noise(2, 60_000))
    torch.testing.assert_close(found["bass"], expected["bass"], atol=1e-6, rtol=0)
