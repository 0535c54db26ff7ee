"""Products below fp32: their values and gradients beside those in fp32, and what they keep."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from demucs_lightning.models import layout, sequences
from demucs_lightning.models.lstm import lstm, reads_less
from demucs_lightning.models.precision import convolution, linear


def passes(module: Any, x: Tensor, dtype: torch.dtype, *, weights: bool) -> list[Tensor]:
    """Output and gradients (of input and parameters) of ``module`` on ``x`` in ``dtype``."""
    module.to(dtype if weights else torch.float32).zero_grad()
    x = x.to(dtype).detach().requires_grad_()
    y = module(x)
    assert y.dtype == dtype
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    y.backward(direction.to(dtype))
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad.clone() for p in module.parameters())]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for actual, wanted in zip(found, expected, strict=True):
        assert (actual.float() - wanted).norm() < tolerance * wanted.norm()


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("channels", [4, 6, 8, 12, 16, 24, 32, 48])
def test_convolutions_in_bf16_are_those_in_fp32(channels, weights):
    """Forward and backward. torch's own strided ones are wrong for some of these widths on CPUs,
    and so are the gradients of its transposed ones."""
    time, freq = (2, channels, 1, 400), (2, channels, 64, 33)
    cases = [
        (layout.Conv1d(channels, 2 * channels, 8, 4), time),
        (layout.Conv1d(channels, channels // 2, 8, 4, 2), time),
        (layout.Conv1d(channels, channels, 3, dilation=2, padding=2), time),
        (layout.Conv2d(channels, 2 * channels, (8, 1), (4, 1), (2, 0)), freq),
        (layout.Conv2d(channels, 2 * channels, 3, padding=1), freq),
        (layout.ConvTranspose1d(channels, channels, 8, 4), time),
        (layout.ConvTranspose1d(channels, channels, 6, 4), time),
        (layout.ConvTranspose2d(channels, channels // 2, (8, 1), (4, 1)), freq),
        (layout.ConvTranspose2d(channels, 2 * channels, (8, 1), (4, 1)), freq),
    ]
    for conv, shape in cases:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        x = layout.channels_last(x.bfloat16().float())
        expected = passes(conv, x, torch.float32, weights=False)
        assert_close(passes(conv, x, torch.bfloat16, weights=weights), expected, 0.015)


def doubles(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def assert_same_gradients(own: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(own, theirs)
    direction = torch.randn_like(own)
    found, expected = (torch.autograd.grad(y, inputs, direction) for y in (own, theirs))
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize(
    ("taps", "stride", "padding", "dilation"), [(3, 1, 2, 2), (8, 4, 2, 1), (2, 1, 1, 1)]
)
def test_gradients_along_time_are_those_of_autograd(taps, stride, padding, dilation):
    """In fp64, and their own gradients too; 97 steps are no multiple of the stride."""
    steps = (1, stride), (0, padding), (1, dilation)
    x, weight, bias = doubles((2, 3, 1, 97), (5, 3, 1, taps), (5,))
    x = layout.channels_last(x.detach()).requires_grad_()
    own = convolution(x, weight, bias, steps)
    assert type(own.grad_fn).__name__ == "_ConvolutionBackward"
    assert_same_gradients(own, nn.functional.conv2d(x, weight, bias, *steps), [x, weight, bias])
    few = doubles((1, 1, 1, 9), (1, 1, 1, taps))
    assert torch.autograd.gradgradcheck(lambda x, w: convolution(x, w, None, steps), few)


@pytest.mark.parametrize("taps", [4, 8])
@pytest.mark.parametrize("channels", [2, 12])
def test_phases_of_bins_are_the_transposed_convolution(taps, channels):
    x, weight, bias = doubles((2, channels, 9, 11), (channels, 6, taps, 1), (6,))
    own = layout.by_phases_of_bins(x, weight, bias, 4)
    theirs = nn.functional.conv_transpose2d(x, weight, bias, (4, 1))
    assert_same_gradients(own, theirs, [x, weight, bias])


def test_one_bin_meets_the_middle_of_a_kernel():
    conv, x = layout.Conv2d(6, 8, 3, padding=1).double(), torch.randn(2, 6, 1, 40).double()
    theirs = nn.functional.conv2d(x, conv.weight, conv.bias, 1, 1)
    assert_same_gradients(conv(x), theirs, [*conv.parameters()])


@pytest.mark.parametrize("shape", [(7, 8), (3, 5, 8), (2, 3, 5, 8)])
def test_linear_brings_weights_to_its_input(shape):
    class Linear(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return linear(input.transpose(0, -2), self.weight, self.bias)

    module, x = Linear(8, 12), torch.randn(shape).bfloat16().float()
    expected = passes(module, x, torch.float32, weights=False)
    assert_close(passes(module, x, torch.bfloat16, weights=False), expected, 0.015)


def test_backward_keeps_no_weights_in_another_precision():
    for module in (
        layout.Conv2d(64, 64, 3),
        layout.Conv1d(64, 64, 1),
        layout.ConvTranspose2d(64, 64, 3),
    ):
        kept: list[int] = []

        def keep(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.numel() if tensor.dtype == torch.bfloat16 else 0)
            return tensor

        x = layout.channels_last(torch.randn(1, 64, 4, 4).bfloat16())
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            module(x)
        assert max(kept) <= x.numel()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_lstm_is_that_of_torch(dtype, tolerance):
    torch.manual_seed(0)
    network, x = nn.LSTM(12, 12, 2, bidirectional=True), torch.randn(30, 3, 12)

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            return lstm(self.network, x)

    class Theirs(Own):
        def forward(self, x: Tensor) -> Tensor:
            return self.network(x)[0]

    expected = passes(Theirs(), x, torch.float32, weights=False)
    assert_close(passes(Own(), x, dtype, weights=False), expected, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("count", [2, 5])
def test_wide_states_give_what_torch_gives(dtype, tolerance, count, monkeypatch):
    torch.manual_seed(0)
    network, x = sequences.BLSTM(24, 2, max_steps=20, skip=True).eval(), torch.randn(count, 50, 24)
    with torch.no_grad():
        expected, asked = network(x), []
        monkeypatch.setattr(sequences, "reads_less", lambda *given: asked.append(1) or True)
        found = network.to(dtype)(x.to(dtype)).float()
    assert asked
    assert (found - expected).norm() < tolerance * expected.norm()


def test_torch_reads_the_weights_of_narrow_states_and_single_sequences():
    wide, narrow = (nn.LSTM(4, width, bidirectional=True) for width in (1024, 512))
    assert reads_less(wide, torch.zeros(3, 2, 4))
    assert not reads_less(wide, torch.zeros(3, 1, 4))
    assert not reads_less(narrow, torch.zeros(3, 2, 4))
