"""The distortion filters of BSS Eval: an estimate's least-squares match by filtered references.

An estimate is projected on the span of the references delayed by 0 to `taps` - 1 samples (Vincent,
Gribonval and Févotte 2006). The normal equations G h = d hold correlations of whole tracks, which
are gathered here block by block, so that memory does not depend on a track's length. With n = S C
channels of references, G is (n taps, n taps) and made of n x n Toeplitz blocks. All estimates share
it: it is factorised once. Everything is float64, since G of recorded music is next to singular.
"""

from collections.abc import Callable

import numpy as np
import scipy.fft
import torch
from torch import Tensor

# (start, stop) in samples -> references and estimates (S, C, stop - start) of one track.
Read = Callable[[int, int], tuple[Tensor, Tensor]]

FRAMES = 16  # FFT frames taken together; with more of them they leave a core's cache
# What is left of a row's diagonal element once those before it are known: recordings have 1e-8 at
# least, a channel that repeats another has rounding errors.
SINGULAR = 1e-10
RIDGE, ITERATIONS = 1e-12, 3  # of the diagonal, what is added to a singular matrix
THIN = 61  # samples, of which one is looked at first to tell whether anything is heard
EPSILON = torch.finfo(torch.float64).eps


class Correlations:
    """Correlations of a track's references with themselves and with the estimates.

    `references[i, j, lag]` (n, n, taps) is the sum over t of r_i[t] r_j[t + lag], and
    `estimates[i, m, lag]` (n, n, taps) that of r_i[t] e_m[t + lag]. `silent` says whether any
    reference or estimate is silent from start to end.
    """

    def __init__(self, read: Read, length: int, taps: int) -> None:
        # A frame is an FFT long, a block is what is new in it: with taps - 1 samples behind the
        # block, the lags that are needed do not wrap around.
        n_fft = 1 << max((8 * taps - 1).bit_length(), 10)
        block = n_fft - taps + 1
        piece = FRAMES * block
        audio, spectra, heard = (torch.zeros(()) for _ in range(3))
        for start in range(0, length, piece):
            stop = min(start + piece, length)
            pair = read(start, min(stop + taps - 1, length))
            if start == 0:
                shape = (2, *pair[0].shape[:2], piece + taps - 1)
                audio = pair[0].new_zeros(shape, dtype=torch.float64)
                heard = audio.new_zeros(shape[:2], dtype=torch.bool)
            for which, each in enumerate(pair):
                audio[which, ..., : each.shape[-1]] = each
                audio[which, ..., each.shape[-1] :] = 0  # behind the end
            if not heard.all():
                heard = heard | ~silent(audio[..., : stop - start])
            frames = audio.flatten(0, 2).unfold(-1, n_fft, block)
            spectra = spectra + _cross_spectra(frames, block)
        lags = _transformed_back(spectra.permute(2, 1, 0), n_fft)[..., :taps]
        if not lags.isfinite().all():
            raise ValueError("The references or the estimates hold values that are not finite.")
        self.references, self.estimates = lags.chunk(2, dim=1)
        self.silent = not bool(heard.all())


def silent(audio: Tensor) -> Tensor:
    """Which signals (..., C, T) are silent, as museval tells it: (...).

    Its rule is that the channels add up to zero everywhere, which a stereo signal with opposite
    channels fulfils as well.
    """
    heard = _heard(audio[..., ::THIN])  # which is enough for most
    return ~heard if heard.all() else ~_heard(audio)


def _heard(audio: Tensor) -> Tensor:
    return audio.sum(-2, dtype=torch.float64).any(-1)


def joint_filters(correlations: Correlations) -> Tensor:
    """Filters (n, n, taps): `[m, i]` is what reference channel i gets for estimate channel m."""
    return _filters(correlations.references, correlations.estimates)


def own_filters(correlations: Correlations, sources: int) -> Tensor:
    """Filters (S, C, C, taps): `[s, m, i]` match channel m of estimate s by reference s alone."""
    both = (correlations.references, correlations.estimates)
    filters = []
    for source in range(sources):
        alone = (each.unflatten(0, (sources, -1)).unflatten(2, (sources, -1)) for each in both)
        filters.append(_filters(*(each[source, :, source] for each in alone)))
    return torch.stack(filters)


def _filters(references: Tensor, estimates: Tensor) -> Tensor:
    """Filters (m, i, taps) from correlations (i, i, taps) and (i, m, taps)."""
    channels, taps = references.shape[0], references.shape[-1]
    right = estimates.transpose(1, 2).flatten(0, 1)
    return solve(_block_toeplitz(references), right).T.unflatten(1, (channels, taps))


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """X (N, K) of `matrix` (N, N, symmetric) X = `right` (N, K); close to the shortest X if it is
    singular.

    By Cholesky's factors. Of equal channels, as in a mono stem, rounding makes a G that is next to
    singular or indefinite, and any plain factorisation of it a matter of luck. Then a little is
    added to the diagonal, and what that changes is taken back by iterations, which leave alone what
    `matrix` says nothing about.
    """
    factors, added = _factors(matrix, 0.0), 0.0
    while factors is None:
        added = max(100 * added, RIDGE)
        factors = _factors(matrix, added)
    solution = _by_factors(factors, right)
    for _ in range(ITERATIONS if added else 0):
        solution = solution + _by_factors(factors, right - matrix @ solution)
    return solution


def _factors(matrix: Tensor, added: float) -> Tensor | None:
    """Cholesky's, with `added` of the diagonal on top of it; None if that is still singular."""
    lower = matrix.clone().mT  # by columns, as LAPACK has it
    lower.diagonal().mul_(1 + added)
    info = torch.zeros((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(lower, out=(lower, info))  # no second copy, which takes as long again
    left = lower.diagonal().square() / matrix.diagonal()
    regular = int(info) == 0 and (added > 0 or float(left.min()) > SINGULAR)
    return lower if regular else None


def _by_factors(lower: Tensor, right: Tensor) -> Tensor:
    """In a fifth of the time of cholesky_solve, which brings the factors into another order."""
    inner = torch.linalg.solve_triangular(lower, right, upper=False)
    return torch.linalg.solve_triangular(lower.mT, inner, upper=True)


def _cross_spectra(frames: Tensor, block: int) -> Tensor:
    """Sum over the frames of the cross spectra (F, 2 n, n) of everything with the references.

    `frames` (2 n, frames, n_fft) holds the references' channels, then the estimates'.
    """
    n_fft = frames.shape[-1]
    blocks = torch.fft.rfft(frames[: len(frames) // 2, :, :block], n=n_fft)
    spectra = torch.fft.rfft(frames)
    # One order of axes for both: products of matrices (F, 2 n, frames) (F, frames, n).
    blocks, spectra = (each.movedim(-1, 0).contiguous() for each in (blocks, spectra))
    return torch.bmm(spectra, blocks.mH)


def _transformed_back(spectra: Tensor, n_fft: int) -> Tensor:
    """The inverse of rfft, rounded to float64 once, where the platform has a longer type: G is so
    close to singular that this halves the distance to museval's scores.
    """
    long = spectra.resolve_conj().cpu().numpy().astype(np.clongdouble)
    signal = np.asarray(scipy.fft.irfft(long, n=n_fft), dtype=np.float64)
    return torch.from_numpy(signal).to(spectra.device)


def _block_toeplitz(lags: Tensor) -> Tensor:
    """G (n taps, n taps) of `lags` (n, n, taps): element (i, a; j, b) is lags[i, j, a - b], and
    lags[j, i, b - a] where a < b.
    """
    channels, taps = lags.shape[0], lags.shape[-1]
    lags = lags.clone()
    lags[..., 0].diagonal().add_(EPSILON)  # lets an all-zero channel through, as in museval
    # From lag taps - 1 of (i, j) down to 0, and on to lag taps - 1 of (j, i).
    both = torch.cat([lags.flip(-1), lags.transpose(0, 1)[..., 1:]], dim=-1)
    matrix = lags.new_empty(channels, taps, channels, taps)
    for i in range(channels):
        for j in range(channels):  # one pair at a time: no second copy of G
            matrix[i, :, j] = both[i, j].unfold(0, taps, 1).flip(0)
    return matrix.view(channels * taps, channels * taps)
