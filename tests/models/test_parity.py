"""The models against the reference package: the same keys and shapes, outputs, gradients and
initial weights."""

import math
from typing import Any

import pytest
import torch
from demucs.demucs import Demucs as ReferenceDemucs
from demucs.hdemucs import HDemucs as ReferenceHDemucs
from torch import Tensor, nn

from demucs_lightning.models import Demucs, HDemucs

FOUR = ["drums", "bass", "other", "vocals"]
OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4

# Every option of the constructors appears at least once away from its default.
DEMUCS = {
    "tiny": {"channels": 4},
    "deep-lstm-attn": {
        "channels": 16,
        "depth": 3,
        "dconv_mode": 3,
        "dconv_attn": 1,
        "dconv_lstm": 2,
    },
    "norm-everywhere": {"channels": 8, "depth": 3, "norm_starts": 0, "norm_groups": 2},
    "no-resample": {"channels": 4, "depth": 3, "resample": False, "normalize": False},
    "no-rewrite": {"channels": 4, "depth": 3, "rewrite": False},
    "relu": {"channels": 4, "depth": 3, "gelu": False, "glu": False},
    "v2": {"channels": 4, "depth": 4, "lstm_layers": 2, "dconv_mode": 0, "gelu": False},
    "dconv-decoder": {
        "channels": 8,
        "depth": 3,
        "dconv_mode": 2,
        "dconv_depth": 3,
        "dconv_comp": 2,
    },
    "dconv-undilated": {"channels": 8, "depth": 2, "dconv_depth": -2, "dconv_init": 0.1},
    "kernel-growth": {
        "channels": 6,
        "depth": 3,
        "growth": 1.5,
        "kernel_size": 6,
        "stride": 3,
        "context": 2,
    },
    "mono-two": {"channels": 4, "depth": 3, "audio_channels": 1, "sources": ["vocals", "rest"]},
    "six": {"channels": 4, "depth": 2, "sources": [*FOUR, "guitar", "piano"], "rescale": 0},
}
SMALL = {"channels": 4, "nfft": 256, "depth": 4}  # three layers over frequency, one over time
HDEMUCS = {
    "tiny": {"channels": 4},
    "lstm-attn": SMALL
    | {"channels": 8, "dconv_comp": 2, "dconv_mode": 3, "dconv_attn": 1, "dconv_lstm": 2},
    "norm": SMALL | {"norm_starts": 0, "norm_groups": 2},
    "time-width": SMALL | {"channels_time": 6, "growth": 1.5},
    "wide-time": SMALL | {"channels_time": 24},
    "context": SMALL | {"context": 2, "context_enc": 1},
    "no-rewrite": SMALL | {"rewrite": False},
    "no-embedding": SMALL | {"freq_emb": 0},
    "embedding": SMALL | {"freq_emb": 0.5, "emb_scale": 3, "emb_smooth": False},
    "dconv-off": SMALL | {"dconv_mode": 0},
    "dconv-decoder": SMALL
    | {"dconv_mode": 2, "dconv_depth": 1, "dconv_comp": 2, "dconv_init": 0.1},
    "time-stride": SMALL | {"depth": 5, "time_stride": 3},
    "kernel": {"channels": 4, "nfft": 128, "depth": 6, "kernel_size": 4, "stride": 2},
    "magnitude": SMALL | {"cac": False},
    "magnitude-floored": SMALL | {"cac": False, "wiener_iters": -1, "end_iters": -1},
    "magnitude-residual": SMALL | {"cac": False, "wiener_residual": True},
    "frequency-only": SMALL | {"hybrid": False},
    "frequency-only-magnitude": SMALL | {"hybrid": False, "cac": False, "end_iters": -1},
    "old": SMALL | {"hybrid_old": True},
    "bands": {"channels": 4, "nfft": 1024, "depth": 5, "multi_freqs": [0.25, 0.5]},
    "bands-three-deep": {
        "channels": 4,
        "depth": 5,
        "multi_freqs": [0.5],
        "multi_freqs_depth": 3,
        "context_enc": 1,
    },
    "mono-two": SMALL | {"audio_channels": 1, "sources": ["vocals", "rest"]},
    "six": SMALL | {"sources": [*FOUR, "guitar", "piano"], "rescale": 0},
}
VARIANTS = [
    pytest.param(ReferenceDemucs, Demucs, kwargs, id=f"Demucs-{name}")
    for name, kwargs in DEMUCS.items()
]
VARIANTS += [
    pytest.param(ReferenceHDemucs, HDemucs, kwargs, id=f"HDemucs-{name}")
    for name, kwargs in HDEMUCS.items()
]
DEFAULTS = [
    pytest.param(ReferenceDemucs, Demucs, {}, id="Demucs"),
    pytest.param(ReferenceHDemucs, HDemucs, {}, id="HDemucs"),
]


def pair(
    reference_class: type, own_class: type, kwargs: dict[str, Any]
) -> tuple[nn.Module, nn.Module]:
    """A reference model, and ours with its weights."""
    kwargs = {"sources": FOUR} | kwargs
    torch.manual_seed(0)
    reference, own = reference_class(**kwargs), own_class(**kwargs)
    shapes = {key: value.shape for key, value in reference.state_dict().items()}
    assert {key: value.shape for key, value in own.state_dict().items()} == shapes
    own.load_state_dict(reference.state_dict())
    return reference, own


def music(batch: int, channels: int, length: int) -> Tensor:
    """Noise with a beat and a tone in it, so that neither silence nor stationarity hides a
    difference."""
    generator = torch.Generator().manual_seed(length)
    t = torch.arange(length) / 44100
    beat = (torch.sin(2 * math.pi * 4 * t) > 0).float() * torch.sin(2 * math.pi * 220 * t)
    return 0.3 * beat + 0.1 * torch.randn(batch, channels, length, generator=generator)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float(((actual - expected).norm() / expected.norm()).detach())


def assert_equal_passes(reference: nn.Module, own: nn.Module, mixture: Tensor) -> None:
    expected, actual = reference(mixture), own(mixture)
    assert actual.shape == expected.shape
    assert relative_error(actual, expected) < OUTPUT_TOLERANCE

    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (expected * direction).sum().backward()
    (actual * direction).sum().backward()
    gradients = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    whole = torch.stack([g.norm() for g in gradients.values()]).norm()
    for name, parameter in own.named_parameters():
        if name not in gradients:
            assert parameter.grad is None or not parameter.grad.any(), name
            continue
        assert parameter.grad is not None, name
        error = (parameter.grad - gradients[name]).norm()
        # A bias in front of a norm, or of a key, has no effect: its gradient is rounding in both.
        assert error < GRADIENT_TOLERANCE * gradients[name].norm() or error < 1e-7 * whole, name


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("reference_class", "own_class", "kwargs"), VARIANTS)
def test_variant_equals_the_reference(reference_class, own_class, kwargs, training):
    reference, own = pair(reference_class, own_class, kwargs)
    mixture = music(2, kwargs.get("audio_channels", 2), 12_345)
    assert_equal_passes(reference.train(training), own.train(training), mixture)


@pytest.mark.parametrize(("reference_class", "own_class", "kwargs"), DEFAULTS)
def test_default_equals_the_reference(reference_class, own_class, kwargs):
    reference, own = pair(reference_class, own_class, kwargs)
    assert_equal_passes(reference, own, music(1, 2, 30_001))


@pytest.mark.parametrize("length", [2, 5, 7, 8, 9, 255, 256, 1023, 4097, 20_000])
@pytest.mark.parametrize(
    ("reference_class", "own_class", "kwargs"),
    [
        pytest.param(ReferenceDemucs, Demucs, {"channels": 4, "depth": 3}, id="Demucs"),
        pytest.param(ReferenceHDemucs, HDemucs, SMALL, id="HDemucs"),
        pytest.param(ReferenceHDemucs, HDemucs, SMALL | {"hybrid_old": True}, id="HDemucs-old"),
    ],
)
def test_every_length_equals_the_reference(reference_class, own_class, kwargs, length):
    reference, own = pair(reference_class, own_class, kwargs)
    mixture = music(3, 2, length)
    with torch.no_grad():
        expected, actual = reference(mixture), own(mixture)
    assert actual.shape == (3, 4, 2, length)
    assert relative_error(actual, expected) < OUTPUT_TOLERANCE


@pytest.mark.parametrize("cac", [True, False])
def test_silence_equals_the_reference(cac):
    reference, own = pair(ReferenceHDemucs, HDemucs, SMALL | {"cac": cac})
    mixture = torch.zeros(1, 2, 5000)
    with torch.no_grad():
        torch.testing.assert_close(own(mixture), reference(mixture), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("reference_class", "own_class", "kwargs"), VARIANTS + DEFAULTS)
def test_initial_weights_follow_the_reference(reference_class, own_class, kwargs):
    """The rules are the same and are applied in the same order: the same seed gives the same
    weights. Layers split into bands are drawn in another order, there the deviations are
    compared."""
    kwargs = {"sources": FOUR} | kwargs
    torch.manual_seed(1)
    reference = reference_class(**kwargs).state_dict()
    torch.manual_seed(1)
    own = own_class(**kwargs).state_dict()
    for key, expected in reference.items():
        if "multi_freqs" not in kwargs:
            torch.testing.assert_close(
                own[key], expected, rtol=1e-5, atol=1e-7, msg=lambda m, k=key: f"{k}: {m}"
            )
        elif expected.numel() >= 256 and "embedding" not in key:
            assert float(own[key].std()) == pytest.approx(float(expected.std()), rel=0.2), key


@pytest.mark.parametrize(
    "kwargs", [{}, {"resample": False}, {"kernel_size": 6, "stride": 3}, {"depth": 2}]
)
def test_valid_length_equals_the_reference(kwargs):
    reference = ReferenceDemucs(FOUR, channels=4, **kwargs)
    own = Demucs(FOUR, channels=4, **kwargs)
    for length in [1, 7, 100, 4096, 44_100, 485_100, 1_764_001]:
        assert own.valid_length(length) == reference.valid_length(length)
