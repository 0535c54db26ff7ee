import numpy as np
import pytest
import torch

from demucs_lightning.metrics.projection import Correlations, joint_filters, own_filters, solve
from tests.metrics.references import music, separated


def correlations(references, estimates, taps):
    def read(start, stop):
        return references[..., start:stop], estimates[..., start:stop]

    return Correlations(read, references.shape[-1], taps)


def delayed(channels, taps):
    """(n taps, T + taps - 1): every channel at every delay."""
    samples = channels.shape[-1]
    rows = np.zeros((len(channels), taps, samples + taps - 1))
    for delay in range(taps):
        rows[:, delay, delay : delay + samples] = channels
    return rows.reshape(-1, samples + taps - 1)


def least_squares(references, estimates, taps):
    """Filters (m, i, taps) of channels (i, T) that match channels (m, T)."""
    wanted = np.pad(estimates, ((0, 0), (0, taps - 1)))
    filters = np.linalg.lstsq(delayed(references, taps).T, wanted.T)[0]
    return filters.T.reshape(len(estimates), len(references), taps)


@pytest.mark.parametrize(("samples", "taps"), [(300, 1), (2000, 7), (20_000, 3), (60, 12)])
def test_filters_are_the_least_squares_solution(samples, taps):
    references = music(2, 2, samples)
    estimates = separated(references)
    found = correlations(references, estimates, taps)
    x, e = (each.flatten(0, 1).numpy() for each in (references, estimates))
    np.testing.assert_allclose(joint_filters(found), least_squares(x, e, taps), atol=1e-9)
    own = own_filters(found, 2)
    assert own.shape == (2, 2, 2, taps)
    for source in range(2):
        expected = least_squares(references[source].numpy(), estimates[source].numpy(), taps)
        np.testing.assert_allclose(own[source], expected, atol=1e-9)


# With 40 taps a frame has 985 new samples, and 16 of them are a piece.
@pytest.mark.parametrize("samples", [1, 900, 985, 1024, 15_721, 15_760, 15_761, 15_799, 70_000])
def test_correlations_of_many_blocks(samples):
    references = music(2, 1, samples)
    estimates = separated(references)
    found = correlations(references, estimates, 40)
    x, e = references.flatten(0, 1).numpy(), np.pad(estimates.flatten(0, 1), ((0, 0), (0, 39)))
    for lag in (0, 1, 39):
        expected = x @ e[:, lag : lag + samples].T
        np.testing.assert_allclose(found.estimates[..., lag], expected, atol=1e-12 * samples)
    assert not found.silent


def test_a_singular_system_has_its_shortest_solution():
    matrix = torch.tensor([[4.0, 4.0, 0], [4, 4, 0], [0, 0, 2]], dtype=torch.float64)
    right = torch.tensor([[8.0], [8], [6]], dtype=torch.float64)
    torch.testing.assert_close(solve(matrix, right).flatten(), torch.tensor([1.0, 1, 3]).double())


@pytest.mark.parametrize("error", [-1e-14, 1e-14])
def test_a_system_that_rounding_made_indefinite_is_solved(error):
    columns = music(1, 3, 500)[0]
    columns = torch.cat([columns, columns[:2]])
    matrix = columns @ columns.T
    exact = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double()
    right = matrix @ exact
    matrix.diagonal()[3:] *= 1 + error
    solution = solve(matrix, right)
    torch.testing.assert_close(columns.T @ solution, columns.T @ exact, rtol=0, atol=1e-6)
    assert solution.abs().max() < 10


def test_a_repeated_channel_changes_no_projection():
    references = music(2, 2, 4000)
    estimates = separated(music(2, 2, 4000))
    references[1, 1] = 0.5 * references[1, 0]
    found = correlations(references, estimates, 12)
    x, e = (each.flatten(0, 1).numpy() for each in (references, estimates))
    expected = delayed(x[:3], 12).T @ least_squares(x[:3], e, 12).reshape(4, -1).T
    projected = delayed(x, 12).T @ joint_filters(found).numpy().reshape(4, -1).T
    np.testing.assert_allclose(projected, expected, atol=1e-8)


def test_silence_is_told_of_the_whole_track():
    references = music(2, 2, 90_000)
    references[1, :, :-1] = 0
    assert not correlations(references, references, 40).silent
    references[1, :, -1] = 0
    assert correlations(references, references, 40).silent
