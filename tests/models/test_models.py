"""What every model promises besides its numbers: export, purity, precisions, and errors in plain
words."""

import copy

import pytest
import torch
from torch import nn

from demucs_lightning.models import Demucs, HDemucs, SeparationModel
from demucs_lightning.models.hybrid import HybridUNet

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
MODELS = {
    "Demucs": lambda: Demucs(FOUR, channels=8, depth=4, dconv_comp=1, dconv_attn=2, dconv_lstm=2),
    "HDemucs": lambda: HDemucs(**SMALL),
    "HDemucs-bands": lambda: HDemucs(
        FOUR, channels=4, nfft=1024, depth=5, multi_freqs=[0.25], dconv_attn=9
    ),
    "HDemucs-magnitude": lambda: HDemucs(**SMALL, cac=False),
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


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # an LSTM keeps its weights twice
@pytest.mark.parametrize("name", ["HDemucs", "HDemucs-bands", "HDemucs-magnitude"])
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


def test_demucs_refuses_an_unknown_dconv_mode():
    with pytest.raises(ValueError, match="dconv_mode is 4: it must be 0, 1, 2 or 3"):
        Demucs(FOUR, channels=4, dconv_mode=4)


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match="attention"):
        HDemucs(FOUR, attention=True)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="attention"):
        Demucs(FOUR, attention=True)  # pyright: ignore[reportCallIssue]
