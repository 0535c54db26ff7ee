"""The models against the reference package: the same keys and shapes, outputs, gradients and
initial weights."""

import inspect
import math
import random
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from demucs.demucs import Demucs as ReferenceDemucs
from demucs.hdemucs import HDemucs as ReferenceHDemucs
from demucs.htdemucs import HTDemucs as ReferenceHTDemucs
from torch import Tensor, nn

from demucs_lightning.models import Demucs, HDemucs, HTDemucs

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
# Two layers over frequency, of 16 bins at the bottom, and a transformer over few tokens.
SMALL_HT = {
    "channels": 4,
    "nfft": 512,
    "depth": 2,
    "dconv_comp": 2,
    "t_heads": 2,
    "segment": 0.1,
}
HTDEMUCS = {
    "small": {},
    **{f"layers-{count}": {"t_layers": count} for count in (0, 1, 2, 3, 4, 6, 7)},
    "bottom": {"bottom_channels": 12},
    "bottom-no-layers": {"bottom_channels": 12, "t_layers": 0},
    "cross-first": {"t_cross_first": True, "t_layers": 3},
    "scaled": {"t_emb": "scaled", "t_max_positions": 300},
    "cape-centred": {"t_emb": "cape", "t_cape_augment": False},
    "cape-plain": {"t_emb": "cape", "t_cape_augment": False, "t_cape_mean_normalize": False},
    "cape-still": {"t_emb": "cape", "t_cape_glob_loc_scale": [0.0, 0.0, 1.0]},
    "positions": {"t_max_period": 100.0, "t_weight_pos_embed": 0.3},
    "norm-in-group": {"t_norm_in": False, "t_norm_in_group": True},
    "norm-in-groups": {"t_norm_in": False, "t_norm_in_group": 4},
    "no-norm-in": {"t_norm_in": False},
    "group-norm": {"t_group_norm": True},
    "group-norms-after": {"t_group_norm": 2, "t_norm_first": False},
    "norm-after": {"t_norm_first": False},
    "norm-after-cross-first": {"t_norm_first": False, "t_cross_first": True},
    "no-norm-out": {"t_norm_out": False},
    "no-layer-scale": {"t_layer_scale": False},
    "relu": {"t_gelu": False, "t_hidden_scale": 1.5},
    "one-head": {"t_heads": 1},
    "masks-without-effect": {
        "t_mask_type": "random",
        "t_mask_random_seed": 1,
        "t_sparse_attn_window": 5,
        "t_global_window": 5,
        "t_sparsity": 0.5,
    },
    "fraction": {"segment": Fraction(1, 12)},
    "any-length": {"use_train_segment": False, "segment": 0.05},
    "time-width": {"channels_time": 6, "t_layers": 0},
    "context": {"context": 2, "context_enc": 1},
    "norm": {"norm_starts": 0, "norm_groups": 2, "rewrite": False},
    "embedding": {"freq_emb": 0.5, "emb_scale": 3, "emb_smooth": False},
    "no-embedding": {"freq_emb": 0},
    "dconv-both": {"dconv_mode": 3, "dconv_depth": 1, "dconv_init": 0.1},
    "dconv-off": {"dconv_mode": 0},
    "kernel": {"depth": 4, "kernel_size": 4, "stride": 2, "time_stride": 3},
    "growth": {"growth": 3},
    "magnitude": {"cac": False},
    "magnitude-floored": {"cac": False, "wiener_iters": -1, "end_iters": -1},
    "magnitude-residual": {"cac": False, "wiener_residual": True},
    "bands": {"nfft": 1024, "multi_freqs": [0.25, 0.5], "multi_freqs_depth": 1},
    "mono-two": {"audio_channels": 1, "sources": ["vocals", "rest"], "samplerate": 48000},
    "six": {"sources": [*FOUR, "guitar", "piano"], "rescale": 0},
    "optimizer": {"t_lr": 1e-4, "t_weight_decay": 0.1},
}
HTDEMUCS = {name: SMALL_HT | kwargs for name, kwargs in HTDEMUCS.items()}
VARIANTS = [
    pytest.param(ReferenceDemucs, Demucs, kwargs, id=f"Demucs-{name}")
    for name, kwargs in DEMUCS.items()
]
VARIANTS += [
    pytest.param(ReferenceHDemucs, HDemucs, kwargs, id=f"HDemucs-{name}")
    for name, kwargs in HDEMUCS.items()
]
VARIANTS += [
    pytest.param(ReferenceHTDemucs, HTDemucs, kwargs, id=f"HTDemucs-{name}")
    for name, kwargs in HTDEMUCS.items()
]
DEFAULTS = [
    pytest.param(ReferenceDemucs, Demucs, {}, id="Demucs"),
    pytest.param(ReferenceHDemucs, HDemucs, {}, id="HDemucs"),
    pytest.param(ReferenceHTDemucs, HTDemucs, {"segment": 1}, id="HTDemucs"),
]


def pair(
    reference_class: type, own_class: type, kwargs: dict[str, Any]
) -> tuple[nn.Module, nn.Module]:
    """A reference model, and ours with its weights."""
    kwargs = {"sources": FOUR} | kwargs
    torch.manual_seed(0)
    reference, own = reference_class(**kwargs), own_class(**kwargs)
    shapes = [(key, value.shape) for key, value in reference.state_dict().items()]
    assert [(key, value.shape) for key, value in own.state_dict().items()] == shapes
    awaken(reference)
    own.load_state_dict(reference.state_dict())
    return reference, own


def awaken(model: nn.Module) -> None:
    """Gains of the transformer as after training: at first they are too small to tell anything."""
    gains = [p for name, p in model.named_parameters() if ".gamma_" in name]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for gain in gains:
            gain.uniform_(0.2, 0.8, generator=generator)


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
        # A distributed run stops where what asks for a gradient gets none.
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if name not in gradients:
            assert parameter.grad is None or not parameter.grad.any(), name
            continue
        assert parameter.grad is not None, name
        error = (parameter.grad - gradients[name]).norm()
        # A bias in front of a norm, or of a key, has no effect: its gradient is rounding in both.
        assert error < GRADIENT_TOLERANCE * gradients[name].norm() or error < 1e-7 * whole, name


@pytest.mark.filterwarnings("ignore:__array_wrap__")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("reference_class", "own_class", "kwargs"), VARIANTS)
def test_variant_equals_the_reference(reference_class, own_class, kwargs, training):
    reference, own = pair(reference_class, own_class, kwargs)
    length = 3000 if own_class is HTDemucs else 12_345
    mixture = music(2, kwargs.get("audio_channels", 2), length)
    assert_equal_passes(reference.train(training), own.train(training), mixture)


@pytest.mark.parametrize(("reference_class", "own_class", "kwargs"), DEFAULTS)
def test_default_equals_the_reference(reference_class, own_class, kwargs):
    reference, own = pair(reference_class, own_class, kwargs)
    assert_equal_passes(reference, own, music(1, 2, 30_001))


@pytest.mark.parametrize(("reference_class", "own_class", "kwargs"), VARIANTS + DEFAULTS)
def test_parameters_come_in_the_order_of_the_reference(reference_class, own_class, kwargs):
    """Quantised files name no parameters: they go by the order in which modules hold them."""
    kwargs = {"sources": FOUR} | kwargs
    with torch.device("meta"):
        models = [klass(**kwargs | {"rescale": 0}) for klass in (reference_class, own_class)]

    def held(model: nn.Module) -> list[str]:
        modules = model.named_modules()
        return [
            f"{at}.{name}" for at, m in modules for name, _ in m.named_parameters(recurse=False)
        ]

    reference, own = models
    assert held(own) == held(reference)
    assert list(own.state_dict()) == list(reference.state_dict())


@pytest.mark.parametrize(
    ("reference_class", "own_class"),
    [(ReferenceDemucs, Demucs), (ReferenceHDemucs, HDemucs), (ReferenceHTDemucs, HTDemucs)],
)
def test_arguments_are_those_of_the_reference(reference_class, own_class):
    def defaults(klass: type) -> list[tuple[str, Any]]:
        plain = {(5000.0, 1.0, 1.4): [5000.0, 1.0, 1.4]}
        parameters = inspect.signature(klass).parameters.items()
        return [
            (name, plain.get(p.default) if isinstance(p.default, tuple) else p.default)
            for name, p in parameters
        ]

    assert defaults(own_class) == [*defaults(reference_class), ("memory", "fast")]


@pytest.mark.parametrize("length", [1, 700, 11_024, 11_025])
@pytest.mark.parametrize("segment", [0.25, Fraction(1, 4)])
def test_inputs_up_to_the_training_segment_equal_the_reference(segment, length):
    reference: Any
    own: Any
    reference, own = pair(ReferenceHTDemucs, HTDemucs, SMALL_HT | {"segment": segment})
    mixture = music(2, 2, length)
    with torch.no_grad():
        expected, actual = reference.eval()(mixture), own.eval()(mixture)
    assert actual.shape == (2, 4, 2, length)
    assert relative_error(actual, expected) < OUTPUT_TOLERANCE
    assert own.valid_length(length) == reference.valid_length(length) == 11_025


@pytest.mark.filterwarnings("ignore:__array_wrap__")
def test_cape_in_training_equals_the_reference(monkeypatch):
    """With the same draws: numpy's in the reference, torch's in ours, are replaced by one."""
    kwargs = SMALL_HT | {"t_emb": "cape", "t_cape_glob_loc_scale": [5.0, 1.0, 1.4]}
    reference, own = pair(ReferenceHTDemucs, HTDemucs, kwargs)

    def draw(low: float, high: float, shape: Any) -> np.ndarray:
        rng = np.random.default_rng(int(np.prod(shape)))
        return rng.uniform(low, high, size=shape)

    def uniform_(tensor: Tensor, low: float, high: float) -> Tensor:  # (B, T) of ours, (T, B, 1)
        values = draw(low, high, (tensor.shape[1], tensor.shape[0], 1))
        return tensor.copy_(torch.from_numpy(values)[..., 0].T)

    monkeypatch.setattr(np.random, "uniform", lambda low, high, size: draw(low, high, size))
    monkeypatch.setattr(Tensor, "uniform_", uniform_)
    mixture = music(2, 2, 4000)
    expected, actual = reference.train()(mixture), own.train()(mixture)
    assert relative_error(actual, expected) < OUTPUT_TOLERANCE
    assert relative_error(actual, own.eval()(mixture)) > 1e-3


def test_shifted_sinusoids_equal_the_reference(monkeypatch):
    reference, own = pair(ReferenceHTDemucs, HTDemucs, SMALL_HT | {"t_sin_random_shift": 50})
    monkeypatch.setattr(random, "randrange", lambda stop: stop - 7)
    monkeypatch.setattr(torch, "randint", lambda stop, *_, **__: torch.tensor([stop - 7]))
    mixture = music(2, 2, 4000)
    expected, actual = reference.train()(mixture), own.train()(mixture)
    assert relative_error(actual, expected) < OUTPUT_TOLERANCE
    assert relative_error(actual, own.eval()(mixture)) > 1e-4


@pytest.mark.parametrize("length", [2, 5, 7, 8, 9, 255, 256, 1023, 4097, 20_000])
@pytest.mark.parametrize(
    ("reference_class", "own_class", "kwargs"),
    [
        pytest.param(ReferenceDemucs, Demucs, {"channels": 4, "depth": 3}, id="Demucs"),
        pytest.param(ReferenceHDemucs, HDemucs, SMALL, id="HDemucs"),
        pytest.param(ReferenceHDemucs, HDemucs, SMALL | {"hybrid_old": True}, id="HDemucs-old"),
        pytest.param(
            ReferenceHTDemucs, HTDemucs, SMALL_HT | {"use_train_segment": False}, id="HTDemucs"
        ),
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
