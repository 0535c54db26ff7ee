import math

import demucs.augment as reference
import pytest
import torch

from demucs_lightning.augment import (
    Augmentation,
    FlipChannels,
    FlipSign,
    Remix,
    Repitch,
    Scale,
    Shift,
)

RATE = 8000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


ALL = [
    Shift(30),
    Shift(30, same=True),
    FlipChannels(),
    FlipSign(),
    Scale(),
    Scale(proba=0.5),
    Remix(group_size=2),
    Remix(group_size=0),
    Remix(proba=0.5, group_size=None),
    Repitch(proba=0.5, samplerate=RATE),
    Repitch(proba=1.0, same=False, samplerate=RATE),
    Augmentation(100, shift=0.3, repitch={"proba": 0.5}),
]


@pytest.mark.parametrize("augment", ALL, ids=lambda augment: type(augment).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_is_a_function_of_the_generator_alone(augment, dtype):
    stems = noise(4, 4, 2, 400).to(dtype)
    before, state = stems.clone(), torch.get_rng_state()
    first, second = (augment(stems, seeded(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(stems, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.dtype == dtype
    assert first.shape[:3] == stems.shape[:3]
    others = [augment(stems, seeded(seed)) for seed in range(4, 12)]
    assert any(not torch.equal(first, other) for other in others)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Shift(100), reference.Shift(100)),
        (Shift(100, same=True), reference.Shift(100, same=True)),
        (Shift(0), reference.Shift(0)),
        (FlipChannels(), reference.FlipChannels()),
        (FlipSign(), reference.FlipSign()),
        (Scale(), reference.Scale()),
        (Scale(1.0, 0.1, 3.0), reference.Scale(1, 0.1, 3)),
        (Remix(group_size=3), reference.Remix(1, 3)),
        (Remix(group_size=0), reference.Remix(1, 0)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("channels", [1, 2])
def test_equals_the_reference_with_the_same_draws(ours, theirs, channels):
    stems = noise(6, 3, channels, 500)
    for seed in range(5):
        torch.manual_seed(seed)
        expected = theirs(stems.clone())
        torch.testing.assert_close(ours(stems, seeded(seed)), expected, rtol=1e-6, atol=0)


def ramp(batch, sources, channels, time):
    """Every sample says where it comes from: value = ((b * S + s) * C + c) * T + t."""
    return (
        torch.arange(batch * sources * channels * time)
        .double()
        .view(batch, sources, channels, time)
    )


def test_shift_offsets_are_uniform_and_contiguous():
    stems = ramp(50, 40, 2, 30)
    shifted = Shift(10)(stems, seeded())
    assert shifted.shape == (50, 40, 2, 20)
    offsets = (shifted - stems[..., :20])[:, :, :, 0]
    assert torch.equal(shifted, stems[..., :20] + offsets[..., None])
    assert torch.equal(offsets[:, :, 0], offsets[:, :, 1])
    counts = torch.bincount(offsets[:, :, 0].flatten().long(), minlength=10)
    assert len(counts) == 10
    assert (counts - 200).abs().max() < 5 * math.sqrt(180)


def test_shift_same_keeps_the_sources_together():
    stems = ramp(80, 4, 2, 30)
    offsets = (Shift(10, same=True)(stems, seeded()) - stems[..., :20])[..., 0]
    assert (offsets == offsets[:, :1, :1]).all()
    assert len(offsets.unique()) == 10


def test_shift_of_nothing_and_of_everything():
    stems = noise(1, 2, 2, 10)
    assert torch.equal(Shift(0)(stems, seeded()), stems)
    with pytest.raises(ValueError, match="augment.shift is 10 samples"):
        Shift(10)(stems, seeded())


def test_flip_channels_swaps_half_of_the_sources():
    stems = ramp(40, 50, 2, 3)
    flipped = FlipChannels()(stems, seeded())
    swapped = (flipped != stems).flatten(2).any(dim=2)
    expected = torch.where(swapped[:, :, None, None], stems.flip(2), stems)
    assert torch.equal(flipped, expected)
    assert 900 < swapped.sum() < 1100


@pytest.mark.parametrize("channels", [1, 3])
def test_flip_channels_leaves_other_than_stereo(channels):
    stems = noise(4, 4, channels, 10)
    assert torch.equal(FlipChannels()(stems, seeded()), stems)


def test_flip_sign_negates_half_of_the_sources():
    stems = ramp(40, 50, 2, 3) + 1
    signs = FlipSign()(stems, seeded()) / stems
    assert (signs == signs[:, :, :1, :1]).all()
    assert set(signs.unique().tolist()) == {-1, 1}
    assert abs(signs.mean()) < 0.1


def test_scale_gains_are_uniform_per_source():
    gains = Scale(1.0, 0.5, 0.9)(torch.ones(50, 40, 2, 3), seeded())
    assert (gains == gains[:, :, :1, :1]).all()
    gains = gains[:, :, 0, 0].flatten().sort().values
    assert len(gains.unique()) > 1990
    uniform = torch.linspace(0.5, 0.9, 2000)
    assert (gains - uniform).abs().max() < 0.4 * 1.63 / math.sqrt(2000)  # Kolmogorov-Smirnov, 1 %


@pytest.mark.parametrize("kind", [Scale, Remix])
def test_probability_is_of_the_whole_batch(kind):
    stems, generator, changed = noise(4, 4, 1, 5), seeded(), 0
    augment = kind(proba=0.3)
    for _ in range(1000):
        differs = (augment(stems, generator) != stems).flatten(2).any(dim=2)
        if kind is Scale:
            assert differs.all() or not differs.any()
        changed += bool(differs.any())
    assert 250 < changed < 350
    assert torch.equal(kind(proba=0.0)(stems, seeded()), stems)


def test_remix_permutes_each_source_within_its_group():
    stems = ramp(6, 4, 2, 5)
    remixed = Remix(group_size=3)(stems, seeded())
    origin = (remixed[:, :, 0, 0] / (4 * 2 * 5)).floor()  # the example that each stem comes from
    rows, columns = origin.long(), torch.arange(4)[None]
    assert torch.equal(remixed, stems[rows, columns])
    for group in (slice(0, 3), slice(3, 6)):
        members = torch.arange(6)[group, None].expand(3, 4)
        assert torch.equal(origin[group].long().sort(dim=0).values, members)
    assert len({tuple(column) for column in origin.T.tolist()}) > 1


def test_remix_permutations_are_uniform():
    stems, generator = ramp(3, 1, 1, 1), seeded()
    seen = [tuple(Remix(group_size=3)(stems, generator).flatten().tolist()) for _ in range(3000)]
    counts = [seen.count(permutation) for permutation in set(seen)]
    assert len(counts) == 6
    assert all(400 < count < 600 for count in counts)


def test_remix_needs_full_groups():
    with pytest.raises(ValueError, match=r"augment.remix.group_size=4 .* batch_size=6"):
        Remix(group_size=4)(noise(6, 2, 2, 5), seeded())
    with pytest.raises(ValueError, match=r"augment.remix.group_size=4 .* batch_size=2"):
        Augmentation().check_batch(2)
    Augmentation().check_batch(8)
    Augmentation(remix={"group_size": 0}).check_batch(7)
    Augmentation(remix={"proba": 0}).check_batch(7)


def test_repitch_draws_equal_the_distribution_of_the_reference():
    repitch = Repitch(proba=0.2, max_pitch=2, max_tempo=6, tempo_std=5, same=False)
    chosen, pitch, tempo = repitch._draw(5000, 4, seeded())
    assert 900 < len(chosen) < 1100
    counts = torch.bincount(torch.tensor(pitch).flatten() + 2)
    assert len(counts) == 5
    assert (counts - 4000).abs().max() < 300
    tempo = torch.tensor(tempo)
    assert tempo.abs().max() == 6
    clipped = math.erfc(6 / 5 / math.sqrt(2))
    assert (tempo.abs() == 6).float().mean().item() == pytest.approx(clipped, abs=0.01)
    assert (tempo.abs() < 5).float().mean().item() == pytest.approx(
        math.erf(math.sqrt(0.5)), abs=0.01
    )
    _, pitch, tempo = Repitch(proba=1.0)._draw(50, 4, seeded())
    assert all(len(set(row)) == 1 for row in pitch + tempo)


def test_repitch_changes_the_chosen_examples_and_cuts_all():
    stems = noise(8, 4, 2, RATE)
    repitch = Repitch(proba=0.5, samplerate=RATE)
    out = repitch(stems, seeded(1))
    length = int(0.88 * RATE)
    assert out.shape == (8, 4, 2, length)
    assert repitch.output_length(RATE) == length
    chosen, pitch, tempo = repitch._draw(8, 4, seeded(1))
    assert 0 < len(chosen) < 8
    for example in range(8):
        same = torch.equal(out[example], stems[example, ..., :length])
        assert same == (example not in chosen)
    energy = out.square().mean((2, 3)) / stems.square().mean((2, 3))
    assert ((energy > 0.6) & (energy < 1.2)).all()


def test_repitch_moves_the_pitch_it_drew():
    """A tone of each source ends up at the semitones of the draw, be it a voice or not."""
    tones = torch.tensor([200.0, 400.0, 600.0, 800.0])
    time = torch.arange(2 * RATE) / RATE
    stems = torch.sin(2 * torch.pi * tones[:, None] * time).expand(3, 2, 4, -1).transpose(1, 2)
    repitch = Repitch(proba=1.0, same=False, max_pitch=4, samplerate=RATE)
    out = repitch(stems, seeded())
    _, pitch, _ = repitch._draw(3, 4, seeded())
    window = torch.hann_window(RATE)
    spectrum = torch.fft.rfft(out[..., RATE // 4 : RATE // 4 + RATE] * window, n=8 * RATE).abs()
    peaks = spectrum.argmax(dim=-1)[:, :, 0] / 8
    expected = tones * 2 ** (torch.tensor(pitch) / 12)
    torch.testing.assert_close(peaks, expected, rtol=0.01, atol=0)
    assert len(set(sum(pitch, []))) > 4


def test_chain_order_is_the_published_one():
    chain = Augmentation(RATE, shift=0.5, repitch={"proba": 0.2})
    kinds = [type(step) for step in chain.steps]
    assert kinds == [Repitch, Shift, FlipChannels, FlipSign, Scale, Remix]
    stems, generator = noise(4, 4, 2, RATE), seeded(2)
    expected = stems
    for step in chain.steps:
        expected = step(expected, generator)
    assert torch.equal(chain(stems, seeded(2)), expected)
    assert chain.output_length(RATE) == expected.shape[-1] == int(0.88 * RATE) - 4000


def test_chain_settings_reach_the_steps():
    chain = Augmentation(
        1000,
        shift=0.25,
        shift_same=True,
        flip=False,
        scale={"min": 0.5},
        remix={"group_size": 2, "proba": 0.4},
        sources=["vocals", "rest"],
    )
    expected = [Shift(250, same=True), Scale(1.0, 0.5, 1.25), Remix(0.4, 2)]
    assert chain.steps == expected
    assert chain.repitch.vocals == (0,)
    assert chain.repitch.samplerate == 1000
    assert chain.output_length(1000) == 750


def test_chain_keeps_energy_up_to_the_gains():
    stems = noise(4, 4, 2, 1000)
    chain = Augmentation(1000, shift=0, scale={"proba": 0})
    energy = chain(stems, seeded()).square().sum((2, 3))
    torch.testing.assert_close(
        energy.sort(dim=0).values, stems.square().sum((2, 3)).sort(dim=0).values
    )


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"shift": -1}, "augment.shift is"),
        ({"scale": {"proba": 1.5}}, "augment.scale.proba is 1.5"),
        ({"scale": {"min": 2.0}}, "augment.scale.min is 2.0 and augment.scale.max 1.25"),
        ({"scale": {"max": math.inf}}, "augment.scale.max inf"),
        ({"scale": {"minimum": 1}}, r"augment.scale has no \['minimum'\]"),
        ({"remix": {"group_size": -4}}, "augment.remix.group_size is -4"),
        ({"remix": {"proba": -0.1}}, "augment.remix.proba is -0.1"),
        ({"repitch": {"max_tempo": 100}}, "augment.repitch.max_tempo is 100"),
        ({"repitch": {"max_pitch": 13}}, "augment.repitch.max_pitch is 13"),
        ({"repitch": {"tempo_std": -1}}, "augment.repitch.tempo_std is -1"),
        ({"repitch": {"vocals": [1]}}, r"augment.repitch has no \['vocals'\]"),
    ],
)
def test_settings_out_of_range(settings, key):
    with pytest.raises(ValueError, match=key):
        Augmentation(**settings)
