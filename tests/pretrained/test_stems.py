"""Stems: kept ones sound as before, new ones are as a fresh network has them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from demucs_lightning.pretrained import CLASSES, Package
from demucs_lightning.pretrained.stems import plan, shapes, stem_axes

FOUR = ["drums", "bass", "other", "vocals"]
HYBRID = {"channels": 4, "nfft": 256, "depth": 4, "hybrid": True}
BANDS = {"multi_freqs": [0.4, 0.7], "multi_freqs_depth": 1}
HTDEMUCS = {"channels": 4, "nfft": 256, "depth": 2, "bottom_channels": 16, "dconv_comp": 2}
HTDEMUCS |= {"t_layers": 1, "t_heads": 2, "segment": 0.25, "samplerate": 8000}
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    # Class, arguments, and how many weights have an axis over stems.
    "Demucs": ("Demucs", {"channels": 4, "depth": 2}, 2),
    "Demucs normalized": ("Demucs", {"channels": 4, "depth": 2, "lstm_layers": 1}, 2),
    "Demucs mono": ("Demucs", {"channels": 4, "depth": 2, "audio_channels": 1}, 2),
    "HDemucs": ("HDemucs", HYBRID, 4),
    "HDemucs without cac": ("HDemucs", {**HYBRID, "cac": False}, 4),
    "HDemucs in bands": ("HDemucs", {**HYBRID, **BANDS}, 8),
    "HDemucs without time": ("HDemucs", {**HYBRID, "hybrid": False, "cac": False}, 2),
    "HTDemucs": ("HTDemucs", HTDEMUCS, 4),
    "HTDemucs in bands": ("HTDemucs", {**HTDEMUCS, "cac": False, **BANDS}, 8),
    # Where the width of a layer is that of the output, luck would find the wrong axis.
    "HDemucs of one width": ("HDemucs", {**HYBRID, "channels": 8, "growth": 1}, 4),
}


def built(klass: str, kwargs: dict[str, Any], *, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return CLASSES[klass](**kwargs).eval()


def separated(model: Any) -> Tensor:
    mixture = torch.randn(2, model.audio_channels, 1500, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return model(mixture)


def moved(case: str, sources: list[str]) -> tuple[nn.Module, nn.Module, nn.Module, list[str]]:
    """The old network, the new one with its weights, the new one as it was, and the decisions."""
    klass, kwargs, _ = CASES[case]
    old = built(klass, {**kwargs, "sources": FOUR}, seed=1)
    package = Package(klass, {**kwargs, "sources": FOUR}, old.state_dict(), "a.th")
    wanted = {**kwargs, "sources": sources}
    transfer = plan(package, wanted)
    new, fresh = built(klass, wanted, seed=2), built(klass, wanted, seed=2)
    new.load_state_dict(transfer.weights(new.state_dict()))
    return old, new, fresh, transfer.decisions


@pytest.mark.parametrize("case", ["Demucs", "HDemucs", "HDemucs in bands", "HTDemucs"])
def test_the_same_stems_in_another_order(case: str) -> None:
    order = ["vocals", "drums", "other", "bass"]
    old, new, _, _ = moved(case, order)
    permuted = separated(old)[:, [FOUR.index(name) for name in order]]
    torch.testing.assert_close(separated(new), permuted, rtol=0, atol=1e-6)
    with pytest.raises(AssertionError):  # it is not the same order
        torch.testing.assert_close(separated(new), separated(old), rtol=0, atol=1e-4)


SOME = ["bass", "a", "vocals", "b"]


@pytest.mark.parametrize(
    ("case", "sources"),
    [(case, SOME) for case in CASES] + [("HDemucs", ["rest", "vocals"]), ("HDemucs", [*FOUR, "x"])],
)
def test_kept_stems_sound_as_before_and_new_ones_are_fresh(case: str, sources: list[str]) -> None:
    old, new, fresh, _ = moved(case, sources)
    before, after = separated(old), separated(new)
    kept = [name for name in sources if name in FOUR]
    torch.testing.assert_close(
        after[:, [sources.index(name) for name in kept]],
        before[:, [FOUR.index(name) for name in kept]],
        rtol=0,
        atol=1e-6,
    )
    klass, kwargs, count = CASES[case]
    axes = stem_axes(klass, {**kwargs, "sources": sources})
    assert len(axes) == count
    for name, axis in axes.items():
        ours, theirs = (
            model.state_dict()[name].unflatten(axis, (len(sources), -1)) for model in (new, fresh)
        )
        for index, source in enumerate(sources):
            same = torch.equal(ours.select(axis, index), theirs.select(axis, index))
            assert same == (source not in FOUR), (name, source)
    for name, value in old.state_dict().items():
        if name not in axes:
            assert torch.equal(new.state_dict()[name], value), name


def test_the_same_stems_are_the_same_weights() -> None:
    old, new, _, _ = moved("HDemucs", FOUR)
    for name, value in old.state_dict().items():
        assert torch.equal(new.state_dict()[name], value)


def test_a_line_for_every_decision() -> None:
    _, new, _, decisions = moved("Demucs", ["vocals", "rest"])
    count = sum(value.numel() for value in new.state_dict().values()) / 1e6
    assert decisions[:-1] == [
        "vocals: carried over",
        "rest: new, starts at random",
        "drums: dropped",
        "bass: dropped",
        "other: dropped",
    ]
    assert decisions[-1] == f"weights: fp32, {count:.1f} M parameters from a.th"


def test_half_precision_becomes_single() -> None:
    kwargs = {**CASES["Demucs"][1], "sources": FOUR}
    old = built("Demucs", kwargs, seed=1)
    half = {name: value.half() for name, value in old.state_dict().items()}
    transfer = plan(Package("Demucs", kwargs, half, "a.th"), {**kwargs, "sources": ["x", "bass"]})
    fresh = built("Demucs", {**kwargs, "sources": ["x", "bass"]}, seed=2).state_dict()
    state = transfer.weights(fresh)
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert torch.equal(state["encoder.0.0.weight"], half["encoder.0.0.weight"].float())
    bias = state["decoder.1.3.bias"]
    assert torch.equal(
        bias, torch.cat([fresh["decoder.1.3.bias"][:2], half["decoder.1.3.bias"][2:4]])
    )
    assert transfer.decisions[-1].startswith("weights: fp16 → fp32, ")
    assert half["encoder.0.0.weight"].dtype == torch.float16  # the package stays as it was


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"channels": 8}, r"a\.th does not fit: its encoder\.0\.0\.weight is 4 x 2 x 8, but with "
         r"these settings it would be 8 x 2 x 8\."),
        ({"lstm_layers": 1}, r"its lstm\.lstm\.weight_ih_l0 is missing, but"),
        ({"rewrite": False}, r"its \S+ is .*, but with these settings it would be"),
        ({"audio_channels": 1}, "would be 4 x 1 x 8"),
    ],
)  # fmt: skip
def test_another_architecture_does_not_fit(change: dict[str, Any], said: str) -> None:
    kwargs = {**CASES["Demucs"][1], "sources": FOUR}
    package = Package("Demucs", kwargs, built("Demucs", kwargs, seed=1).state_dict(), "a.th")
    with pytest.raises(ValueError, match=said):
        plan(package, {**kwargs, "sources": ["vocals", "rest"], **change})


def test_looking_at_shapes_draws_nothing() -> None:
    before = torch.get_rng_state()
    found = shapes("HDemucs", {**HYBRID, "sources": ["a"]})
    assert found["decoder.3.conv_tr.weight"] == (4, 4, 8, 1)
    assert torch.equal(before, torch.get_rng_state())
