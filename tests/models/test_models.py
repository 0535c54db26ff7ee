"""What every model promises besides its numbers: export, purity, precisions, and errors in plain
words."""

import copy
import math
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from demucs_lightning.models import Demucs, HDemucs, HTDemucs, SeparationModel, layout, norms
from demucs_lightning.models.hybrid import HybridUNet
from demucs_lightning.models.positions import grid_positions
from demucs_lightning.models.transformer import CrossLayer, SelfLayer

FOUR = ["drums", "bass", "other", "vocals"]
SMALL = {
    "sources": FOUR,
    "channels": 8,
    "nfft": 256,
    "depth": 4,
    "dconv_comp": 2,
    "dconv_attn": 2,
    "dconv_lstm": 2,
}
SMALL_HT = {
    "sources": FOUR,
    "channels": 8,
    "nfft": 512,
    "depth": 2,
    "dconv_comp": 2,
    "t_heads": 2,
    "segment": 0.2,
}
MODELS = {
    "Demucs": lambda: Demucs(FOUR, channels=8, depth=4, dconv_comp=1, dconv_attn=2, dconv_lstm=2),
    "HDemucs": lambda: HDemucs(**SMALL),
    "HDemucs-bands": lambda: HDemucs(
        FOUR, channels=4, nfft=1024, depth=5, multi_freqs=[0.25], dconv_attn=9
    ),
    "HDemucs-magnitude": lambda: HDemucs(**SMALL, cac=False),
    "HTDemucs": lambda: HTDemucs(**SMALL_HT),
    "HTDemucs-bottom": lambda: HTDemucs(
        **SMALL_HT, bottom_channels=12, t_emb="scaled", t_max_positions=2000, t_group_norm=2
    ),
    "HTDemucs-cape": lambda: HTDemucs(
        **SMALL_HT, t_emb="cape", t_sin_random_shift=9, t_norm_in=False, cac=False
    ),
}


class Network(nn.Module):
    """The part of a hybrid model between the STFT and its inverse, as a module of its own."""

    def __init__(self, model: HybridUNet) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, x_freq: torch.Tensor, x_time: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.model.network(x_freq, x_time)


@pytest.fixture(params=MODELS)
def model(request) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[request.param]()


def test_protocol(model):
    assert isinstance(model, SeparationModel)
    assert model.sources == FOUR
    assert (model.samplerate, model.audio_channels) == (44100, 2)


def test_forward_changes_no_attribute(model):
    def attributes():
        return {name: dict(vars(module)) for name, module in model.named_modules()}

    before = {
        name: {k: copy.copy(v) for k, v in values.items()} for name, values in attributes().items()
    }
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model(torch.randn(1, 2, 3000))
    for name, values in attributes().items():
        assert values.keys() == before[name].keys(), name
        for key, value in values.items():
            if not isinstance(value, dict | torch.Tensor):
                assert value == before[name][key], (name, key)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_forward_leaves_its_input_alone(model):
    mixture = torch.randn(2, 2, 3000)
    kept = mixture.clone()
    model(mixture)
    assert torch.equal(mixture, kept)


def test_examples_of_a_batch_do_not_mix(model):
    model.eval()
    mixture = torch.randn(3, 2, 4000) * torch.tensor([0.01, 1.0, 10.0])[:, None, None]
    with torch.no_grad():
        together = model(mixture)
        alone = torch.cat([model(example[None]) for example in mixture])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_every_parameter_learns(model):
    model(torch.randn(2, 2, 12_000)).square().mean().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


def test_what_is_written_for_gpus_gives_the_same(model, monkeypatch):
    """Run on a CPU, with every memory."""

    def step() -> list[torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(0)
        estimates = model(torch.randn(2, 2, 6000))
        estimates.square().mean().backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return [estimates.detach(), torch.cat(gradients)]

    expected = step()
    monkeypatch.setattr(layout, "on_gpu", lambda x: True)
    monkeypatch.setattr(norms, "LONG", 1)
    for memory in ("fast", "balanced", "low"):
        model.memory = memory
        for found, wanted in zip(step(), expected, strict=True):
            assert (found - wanted).norm() < 1e-5 * wanted.norm(), memory


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # an LSTM keeps its weights twice
@pytest.mark.parametrize("name", [name for name in MODELS if name != "Demucs"])
def test_network_between_stft_and_inverse_exports(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    mixture = torch.randn(2, 2, 6000)
    inputs = (model.spectral.to_channels(model.spectral.spec(mixture)), mixture)
    exported = torch.export.export(Network(model), inputs).module()
    assert not any(t.is_complex() for t in exported.state_dict().values())
    other = torch.randn(2, 2, 6000)
    inputs = (model.spectral.to_channels(model.spectral.spec(other)), other)
    with torch.no_grad():
        for actual, expected in zip(exported(*inputs), model.network(*inputs), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The tensor attributes")
def test_demucs_exports_whole():
    torch.manual_seed(0)
    model = MODELS["Demucs"]().eval()
    exported = torch.export.export(model, (torch.randn(1, 2, 6000),)).module()
    mixture = torch.randn(1, 2, 6000)
    with torch.no_grad():
        torch.testing.assert_close(exported(mixture), model(mixture), rtol=1e-5, atol=1e-6)


def test_double_precision(model):
    mixture = torch.randn(1, 2, 5000)
    with torch.no_grad():
        single = model.eval()(mixture)
        double = model.double()(mixture.double())
    assert double.dtype == torch.float64
    assert (single - double).norm() < 1e-5 * double.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(model, dtype):
    mixture = torch.randn(1, 2, 5000)
    model.eval()
    with torch.no_grad():
        single = model(mixture)
        with torch.autocast("cpu", dtype=dtype):
            half = model(mixture)
    assert torch.isfinite(half).all()
    assert (single - half.float()).norm() < 0.05 * single.norm()


def test_half_precision_is_that_of_the_weights_alone(model):
    """Spectrograms, levels and resampling stay in fp32, and so do input and output."""
    mixture = 10 * torch.randn(1, 2, 5000)
    with torch.no_grad():
        single = model.eval()(mixture)
        half = model.bfloat16()(mixture)
    assert half.dtype == torch.float32
    assert 1e-4 < (single - half).norm() / single.norm() < 0.05
    for name, buffer in model.named_buffers():
        assert buffer.dtype == torch.float32, name


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"wiener_iters": 1, "end_iters": 1}, "iterative"),
        ({"wiener_iters": -1}, "equal to end_iters"),
        ({"hybrid": False, "hybrid_old": True}, "hybrid=True"),
        ({"depth": 2}, "depth=2 ends before the branches join"),
        ({"nfft": 512}, "nfft=512"),
        ({"nfft": 1000}, "125 bins are left"),
        ({"channels": 4, "dconv_attn": 0}, "multiple of 4"),
        ({"multi_freqs": [0.5], "norm_starts": 0}, "norm_starts"),
        ({"dconv_mode": 7}, "dconv_mode is 7"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(kwargs, words):
    with pytest.raises(ValueError, match=words):
        HDemucs(**SMALL | kwargs)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"t_sparse_self_attn": True}, "never released: set t_sparse_self_attn=False"),
        ({"t_sparse_cross_attn": True}, "never released: set t_sparse_cross_attn=False"),
        ({"t_auto_sparsity": True}, "never released: set t_auto_sparsity=False"),
        ({"t_emb": "rotary"}, "t_emb is 'rotary': it must be sin, cape, scaled"),
        ({"t_heads": 3}, "16 wide: this must be a multiple of t_heads .3."),
        ({"bottom_channels": 6}, "6 wide: this must be a multiple of .*4"),
        ({"t_layers": -1}, "t_layers is -1"),
        ({"t_dropout": 1.5}, "t_dropout is 1.5"),
        ({"t_lr": 0}, "t_lr is 0"),
        ({"t_weight_decay": -1}, "t_weight_decay is -1"),
        ({"t_sin_random_shift": -1}, "t_sin_random_shift is -1"),
        ({"t_cape_glob_loc_scale": [1, 1]}, "t_cape_glob_loc_scale is .1, 1.: it must be two"),
        ({"channels_time": 4}, "channels_time=4 makes branches of widths 16 and 8"),
        ({"depth": 4}, "depth=4 leaves one frequency bin"),
        ({"dconv_comp": 16}, "dconv_comp=16 leaves nothing of a layer of 8 channels"),
        ({"wiener_iters": 1, "end_iters": 1}, "iterative"),
    ],
)
def test_arguments_that_do_not_fit_htdemucs_are_refused(kwargs, words):
    with pytest.raises(ValueError, match=words):
        HTDemucs(**SMALL_HT | kwargs)


def test_any_length_goes_but_with_a_training_segment():
    assert MODELS["Demucs"]().max_segment == MODELS["HDemucs"]().max_segment == math.inf
    model = HTDemucs(**SMALL_HT).eval()
    assert model.max_segment == 0.2
    with pytest.raises(ValueError, match="8821 samples is longer than the 8820"):
        model(torch.randn(1, 2, 8821))
    assert model.train()(torch.randn(1, 2, 9500)).shape == (1, 4, 2, 9500)
    free = HTDemucs(**SMALL_HT, use_train_segment=False).eval()
    assert (free.max_segment, free.valid_length(8821)) == (math.inf, 8821)
    with torch.no_grad():
        assert free(torch.randn(1, 2, 9500)).shape == (1, 4, 2, 9500)


def test_the_training_segment_is_exact_in_samples():
    model = HTDemucs(**SMALL_HT)
    for samples in [*range(343_000, 344_000), 441_000, 2**20 + 1]:
        for segment in (samples / 44100, Fraction(samples, 44100)):
            model.segment = segment
            assert model.training_length == samples
    model.segment = 1 + 0.7 / 44100  # no whole number of samples: what is full
    assert model.training_length == 44100


def test_learnt_positions_end_somewhere():
    model = HTDemucs(**SMALL_HT, t_emb="scaled", t_max_positions=100)
    with pytest.raises(ValueError, match="has 500 positions.*t_max_positions is 100"):
        model(torch.randn(1, 2, 8000))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"t_dropout": 0.3},
        {"t_sin_random_shift": 100},
        {"t_emb": "cape"},
    ],
)
def test_what_is_random_in_training_follows_the_seed_and_rests_in_eval(kwargs):
    model, mixture = HTDemucs(**SMALL_HT, **kwargs), torch.randn(1, 2, 4000)

    def run(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        with torch.no_grad():
            return model(mixture)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    model.eval()
    assert torch.equal(run(1), run(2))
    torch.manual_seed(3)
    state = torch.get_rng_state()
    model(mixture)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("layer", [SelfLayer, CrossLayer])
def test_dropout_is_on_attention_and_on_both_residual_paths(layer, monkeypatch):
    """With a rate that drops all, what is left of a layer is its input."""
    model = HTDemucs(**SMALL_HT, t_dropout=0.999999, t_norm_out=False)
    assert model.crosstransformer is not None
    rates = []
    attention = F.scaled_dot_product_attention

    def noting(*args: torch.Tensor, dropout_p: float) -> torch.Tensor:
        rates.append(dropout_p)
        return attention(*args, dropout_p=dropout_p)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noting)
    torch.manual_seed(0)
    module = layer(16, model.crosstransformer.options)
    x, other = torch.randn(1, 5, 16), torch.randn(1, 7, 16)
    torch.testing.assert_close(module(x, other), x, rtol=0, atol=0)
    assert not torch.equal(module.eval()(x, other), x)
    assert rates == [0.999999, 0.0]


def test_positions_are_exact_in_half_precision():
    """Counted in fp32: bf16 has no whole numbers between 256 and 258."""
    x = torch.zeros(1, 16, 400, dtype=torch.bfloat16)
    encoder = HTDemucs(**SMALL_HT).crosstransformer
    assert encoder is not None
    exact = encoder._time_positions(x.float())
    torch.testing.assert_close(encoder._time_positions(x), exact, rtol=0, atol=0)
    grid = torch.zeros(1, 16, 3, 400)
    for like in (grid.bfloat16(), grid):
        positions = grid_positions(like, 10000.0)
        assert positions.shape == (3, 400, 16)
        assert positions.dtype == torch.float32
        assert not torch.equal(positions[0, 257], positions[0, 256])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(encoder._time_positions(x), exact, rtol=0, atol=0)


def test_parameter_groups_hold_every_parameter_once():
    model = HTDemucs(**SMALL_HT, t_lr=1e-4, t_weight_decay=0.1, bottom_channels=8)
    rest, inside = model.parameter_groups()
    assert (inside["lr"], inside["weight_decay"], inside["name"]) == (1e-4, 0.1, "transformer")
    assert rest.keys() == {"params", "name"}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [[names[id(p)] for p in group["params"]] for group in (rest, inside)]
    assert sorted(sum(found, [])) == sorted(names.values())
    assert {name for name in names.values() if name.startswith("crosstransformer.")} == set(
        found[1]
    )
    (only,) = HTDemucs(**SMALL_HT, t_layers=0).parameter_groups()
    assert "lr" not in only


def test_demucs_refuses_an_unknown_dconv_mode():
    with pytest.raises(ValueError, match="dconv_mode is 4: it must be 0, 1, 2 or 3"):
        Demucs(FOUR, channels=4, dconv_mode=4)


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match="attention"):
        HDemucs(FOUR, attention=True)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="attention"):
        Demucs(FOUR, attention=True)  # pyright: ignore[reportCallIssue]
