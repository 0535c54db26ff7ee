import demucs.svd
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from demucs_lightning import losses
from demucs_lightning.losses import SeparationLoss, SVDPenalty

WEIGHTS = [1.0, 0.5, 2.0]


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    estimates, stems = torch.randn(2, 4, 3, 2, 500, generator=generator).unbind()
    return estimates.requires_grad_(), stems


def published(kind, pair, weights):
    """Loss and error per source as demucs 4 computes them for a batch."""
    (estimates, stems), weights = pair, torch.tensor(weights)
    if kind == "l1":
        loss = F.l1_loss(estimates, stems, reduction="none").mean((2, 3)).mean(0)
        error = loss
    else:
        loss = F.mse_loss(estimates, stems, reduction="none").mean((2, 3))
        error = (loss**0.5).mean(0)
    return (loss * weights).sum() / weights.sum(), error


def test_l1_equals_the_reference(pair):
    loss, per_source = SeparationLoss("l1", WEIGHTS)(*pair)
    expected, error = published("l1", pair, WEIGHTS)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(per_source, error.detach())


def test_mse_is_the_mean_of_what_the_reference_sums_over_the_batch(pair):
    loss, per_source = SeparationLoss("mse", WEIGHTS)(*pair)
    expected, error = published("mse", pair, WEIGHTS)
    torch.testing.assert_close(loss, expected / 4)
    torch.testing.assert_close(per_source, error.detach())
    assert not per_source.requires_grad


@pytest.mark.parametrize("kind", ["l1", "mse"])
def test_halves_of_a_batch_average_to_the_batch(pair, kind):
    estimates, stems = pair
    criterion = SeparationLoss(kind, WEIGHTS)
    halves = [criterion(estimates[at], stems[at])[0] for at in (slice(2), slice(2, 4))]
    torch.testing.assert_close(sum(halves) / 2, criterion(estimates, stems)[0])


def test_gradient_follows_the_weights(pair):
    estimates, stems = pair
    SeparationLoss("l1", [0.0, 1.0, 3.0])(estimates, stems)[0].backward()
    size = estimates[:, 0].numel()
    per_source = estimates.grad.abs().sum((0, 2, 3)) / size * stems[:, 0].numel()
    torch.testing.assert_close(per_source, torch.tensor([0.0, 0.25, 0.75]))


def test_no_weights_are_equal_weights_and_leave_no_trace(pair):
    plain = SeparationLoss("l1")
    torch.testing.assert_close(plain(*pair), SeparationLoss("l1", [2.0, 2.0, 2.0])(*pair))
    assert plain.state_dict() == {}


def test_wrong_settings(pair):
    with pytest.raises(ValueError, match="weights has 2 values"):
        SeparationLoss("l1", [1.0, 1.0])(*pair)
    with pytest.raises(ValueError, match="weights has 1 values"):
        SeparationLoss("l1", [1.0])(*pair)
    with pytest.raises(ValueError, match="optim.loss is 'l2'"):
        SeparationLoss("l2")
    for weights in [[0.0, 0.0], [-1.0, 2.0], [float("nan"), 1.0], []]:
        with pytest.raises(ValueError, match="weights"):
            SeparationLoss("l1", weights)


def small_model():
    torch.manual_seed(1)
    return nn.ModuleDict(
        {
            "conv": nn.Conv1d(6, 20, 8),
            "transposed": nn.ConvTranspose1d(20, 12, 8),
            "conv2d": nn.Conv2d(4, 10, (3, 1)),
            "transposed2d": nn.ConvTranspose2d(10, 4, (3, 1)),
            "lstm": nn.LSTM(10, 10, bidirectional=True),
            "norm": nn.GroupNorm(2, 2000),
        }
    )


SETTINGS = [
    {},
    {"dim": 3, "niters": 4},
    {"convtr": True, "conv_only": True},
    {"min_size": 900 / 2**18},
    {"powm": True, "niters": 5, "bs": 3},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_penalty_equals_the_reference_in_value_and_gradient(settings):
    settings = {"min_size": 1e-4, "convtr": False, **settings}
    ours, theirs = small_model(), small_model()
    torch.manual_seed(7)
    expected = torch.as_tensor(demucs.svd.svd_penalty(theirs, **settings))
    expected.backward()
    value = SVDPenalty(1.0, **settings)(ours, torch.Generator().manual_seed(7))
    value.backward()
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)
    counted = 0
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        if mine.grad is None or reference.grad is None:
            assert mine.grad is reference.grad
            continue
        counted += 1
        assert mine.grad.isfinite().all()
        assert (mine.grad - reference.grad).norm() < 1e-3 * reference.grad.norm()
    assert counted > 0


@pytest.mark.parametrize(
    "settings", [{}, {"convtr": True}, {"conv_only": True}, {"min_size": 0.003}]
)
def test_exact_penalty(settings):
    settings = {"min_size": 1e-4, "convtr": False, **settings}
    model = small_model()
    exact = SVDPenalty(1.0, **settings).exact(model)
    torch.testing.assert_close(exact, demucs.svd.svd_penalty(model, exact=True, **settings))
    assert exact > 0
    close = SVDPenalty(1.0, dim=6, niters=30, **settings)(model, torch.Generator().manual_seed(0))
    torch.testing.assert_close(close, exact, rtol=1e-3, atol=0)


def test_estimate_never_exceeds_the_exact_value_and_nears_it():
    model = small_model()
    exact = SVDPenalty(1.0, min_size=1e-4).exact(model)
    estimates = [
        SVDPenalty(1.0, min_size=1e-4)(model, torch.Generator().manual_seed(seed))
        for seed in range(10)
    ]
    assert all(0.6 * exact < estimate <= exact * 1.0001 for estimate in estimates)


def by_svd(matrix, dim, niters, generator):
    """The estimate by decompositions alone."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
    basis = tall @ torch.randn(tall.shape[1], dim, generator=generator)
    basis = torch.linalg.qr(basis).Q
    for _ in range(niters):
        basis = torch.linalg.qr(tall @ torch.linalg.qr(tall.mT @ basis).Q).Q
    return torch.linalg.svdvals(basis.mT @ tall)[0].square()


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_the_estimate_is_that_of_an_svd(dim):
    model = small_model()
    penalty = SVDPenalty(1.0, min_size=1e-4, dim=dim)
    generator = torch.Generator().manual_seed(3)
    values = [by_svd(matrix, dim, 2, generator) for matrix in penalty.matrices(model)]
    expected = torch.stack(values).sum()
    weights = [weight for weight in model.parameters() if weight.dim() > 1]
    gradients = torch.autograd.grad(expected, weights)
    value = penalty(model, torch.Generator().manual_seed(3))
    torch.testing.assert_close(value, expected, rtol=2e-6, atol=0)
    for found, gradient in zip(torch.autograd.grad(value, weights), gradients, strict=True):
        assert (found - gradient).norm() < 2e-5 * gradient.norm()


@pytest.mark.parametrize("niters", [1, 30])
def test_weights_of_zeros_and_large_ones_have_finite_gradients(niters):
    for value in (0.0, 1e3):
        layer = nn.Linear(30, 40, bias=False)
        nn.init.constant_(layer.weight, value)
        penalty = SVDPenalty(1.0, min_size=0, niters=niters)
        found = penalty(layer, torch.Generator().manual_seed(0))
        found.backward()
        assert found.item() == pytest.approx(value**2 * 1200, rel=1e-4)
        assert layer.weight.grad is not None
        assert layer.weight.grad.isfinite().all()


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_one_direction_needs_no_decomposition_for_which_a_host_waits():
    with Operations() as operations:
        SVDPenalty(1.0, min_size=1e-4)(small_model(), torch.Generator()).backward()
    waits = [name for name in operations.names if name.startswith(("linalg_", "_linalg_"))]
    assert set(waits) <= {"linalg_vector_norm"}
    assert "_local_scalar_dense" not in operations.names


def test_draws_are_on_the_device_of_the_weights_and_alike_on_every_process(monkeypatch):
    made = []

    class Elsewhere:
        def __init__(self, device):
            self.device = device

        def manual_seed(self, seed):
            made.append((str(self.device), seed))
            return self

    ranks = [torch.Generator().manual_seed(5) for _ in range(2)]
    monkeypatch.setattr(losses, "Generator", Elsewhere)
    for rank in ranks:
        assert losses._on(torch.device("cpu"), rank) is rank
        for _ in range(2):
            assert losses._on(torch.device("cuda:1"), rank).device == torch.device("cuda:1")
    assert made[:2] == made[2:]
    assert made[0][0] == "cuda:1"
    assert made[0][1] != made[1][1]  # each step has its own


def test_small_weights_and_vectors_do_not_count():
    value = SVDPenalty(1.0, min_size=1.0)(small_model(), torch.Generator())
    assert value.item() == 0


def test_penalty_is_skipped_alike_by_equal_generators():
    model, penalty = small_model(), SVDPenalty(1.0, min_size=1e-4, proba=0.3)
    first, second = (torch.Generator().manual_seed(5) for _ in range(2))
    values = torch.stack([penalty(model, first).detach() for _ in range(300)])
    again = torch.stack([penalty(model, second).detach() for _ in range(300)])
    assert torch.equal(values, again)
    assert 0.2 < (values > 0).float().mean() < 0.4
    full = SVDPenalty(1.0, min_size=1e-4)(model, torch.Generator().manual_seed(0))
    assert values.mean().item() == pytest.approx(full.item(), rel=0.3)


def test_penalty_under_autocast_and_descent():
    model, generator = small_model(), torch.Generator().manual_seed(0)
    penalty = SVDPenalty(1.0, min_size=1e-4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    before = penalty.exact(model)
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = penalty(model, generator)
        assert value.dtype == torch.float32
        value.backward()
        optimizer.step()
    assert penalty.exact(model) < 0.8 * before


@pytest.mark.parametrize(
    "settings",
    [{"penalty": -1}, {"proba": 0}, {"proba": 1.5}, {"dim": 0}, {"niters": 0}, {"bs": 0}],
)
def test_penalty_settings_out_of_range(settings):
    with pytest.raises(ValueError, match=f"svd.{next(iter(settings))} is"):
        SVDPenalty(**settings)
