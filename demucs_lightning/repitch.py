"""Pitch and tempo of audio, changed independently, on any device and with torch alone.

A time stretch that keeps the pitch (`stretch`: waveform similarity overlap-add, Verhelst & Roelands
1993) is followed by a change of speed that moves pitch and duration together (`change_speed`:
windowed sinc). Rows are independent of each other; the channels of a row share every decision, so
the stereo image stays.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

ZERO_CROSSINGS = 24  # of the sinc kernel, on each side
ROLLOFF = 0.945  # of the Nyquist rate: where the sinc kernel starts to cut
CENTRE_BIAS = 1e-3  # what a full tolerance costs in correlation; makes silence stay where it is


def repitch(
    audio: Tensor, pitch: Sequence[int], tempo: Sequence[float], *, length: int, window: int
) -> Tensor:
    """Change row r of audio (R, C, T) by `pitch[r]` semitones and `tempo[r]` percent of tempo.

    Returns (R, C, length): the start of the result, zeros where a row became shorter than `length`
    samples. `window` (samples, even) is the piece of audio that the stretch moves as one.
    """
    ratios = [Fraction(2 ** (p / 12)).limit_denominator(100) for p in pitch]
    rates = [(1 + t / 100) / float(ratio) for t, ratio in zip(tempo, ratios, strict=True)]
    needed = math.ceil(length * float(max(ratios))) + window
    speeds = torch.stack([audio.new_full((), rate) for rate in rates])  # copied, a GPU would wait
    stretched = stretch(audio, speeds, length=needed, window=window)
    rows = zip(stretched, ratios, strict=True)
    return torch.stack([change_speed(row, ratio)[..., :length] for row, ratio in rows])


def stretch(audio: Tensor, rate: Tensor, *, length: int, window: int) -> Tensor:
    """Play row r of audio (R, C, T) `rate[r]` times as fast at the same pitch: (R, C, length).

    Half-overlapping Hann windows are laid every `window / 2` samples; each is taken from where its
    first half is most similar to what follows the window before it, within `window / 4` samples of
    the steady place.
    """
    half, reach = window // 2, window // 4
    count = math.ceil(length / half) + 1
    steady = (torch.arange(count, device=audio.device) * half * rate[:, None]).round().long()
    # A window is centred on its place; past the end there is silence to read from.
    steady = steady.clamp(max=audio.shape[-1]) + reach
    padded = F.pad(audio, (half + reach, window + reach))
    starts = _similar_starts(padded, steady, window)
    hann = torch.hann_window(window, dtype=audio.dtype, device=audio.device)
    windows = _pieces(padded, starts, window) * hann  # (R, count, C, window)
    blocks = windows[:, :-1, :, half:] + windows[:, 1:, :, :half]
    return blocks.transpose(1, 2).flatten(2)[..., :length]


def _similar_starts(padded: Tensor, steady: Tensor, window: int) -> Tensor:
    """Where each window starts (R, count): `steady`, moved to continue the window before."""
    half, reach = window // 2, window // 4
    lags = torch.arange(-reach, reach + 1, device=padded.device)
    bias = CENTRE_BIAS * lags.abs() / reach
    firsts = steady - reach  # of the areas in which windows may start
    areas = _pieces(padded, firsts[:, 1:], half + 2 * reach)
    energies, spectra = (
        each.transpose(0, 1) for each in (_energies(areas, half), torch.fft.rfft(areas))
    )
    halves, rows = padded.unfold(-1, half, 1), torch.arange(len(padded), device=padded.device)
    start, starts = steady[:, 0], [steady[:, 0]]
    # A window depends on the one before: what doesn't is computed for all of them at once.
    for spectrum, energy, first in zip(spectra, energies, firsts.T[1:], strict=True):
        likeness = _correlation(spectrum, halves[rows, :, start + half], energy)
        start = first + (likeness - bias).argmax(dim=-1)
        starts.append(start)
    return torch.stack(starts, dim=1)


def _pieces(audio: Tensor, starts: Tensor, size: int) -> Tensor:
    """The `size` samples from each of starts (R, K) of audio (R, C, T): (R, K, C, size)."""
    rows = torch.arange(len(audio), device=audio.device)[:, None]
    return audio.unfold(-1, size, 1)[rows, :, starts]


def _energies(areas: Tensor, size: int) -> Tensor:
    """Energy of each `size` samples of areas (..., C, span): (..., lags)."""
    energy = F.pad(areas.square().sum(dim=-2).cumsum(dim=-1), (1, 0))
    energy = (energy[..., size:] - energy[..., :-size]).clamp(min=0)
    # A lag far quieter than the loudest would be divided by rounding noise.
    return energy + 1e-6 * energy.amax(dim=-1, keepdim=True)


def _correlation(spectrum: Tensor, template: Tensor, energy: Tensor) -> Tensor:
    """Correlation, over channels and time, of template (R, C, size) and the area of `spectrum`
    (R, C, F), normalised by the template's energy and `energy` (R, lags): (R, lags)."""
    span, lags = 2 * (spectrum.shape[-1] - 1), energy.shape[-1]
    product = torch.fft.irfft(spectrum * torch.fft.rfft(template, n=span).conj(), n=span)
    total = energy * template.square().sum(dim=(-2, -1))[..., None]
    return product[..., :lags].sum(dim=-2) / (total + 1e-9).sqrt()


def change_speed(audio: Tensor, ratio: Fraction) -> Tensor:
    """Play audio (..., T) `ratio` times as fast, pitch and all: (..., ceil(T / ratio))."""
    if ratio == 1:
        return audio
    old = ratio.numerator
    kernels = _kernels(ratio, audio.device, audio.dtype)
    reach = (kernels.shape[-1] - old) // 2
    length = math.ceil(audio.shape[-1] / ratio)
    padded = F.pad(audio.reshape(-1, 1, audio.shape[-1]), (reach, reach + old))
    blocks = F.conv1d(padded, kernels, stride=old)  # (rows, new, blocks)
    return blocks.transpose(1, 2).flatten(1)[:, :length].reshape(*audio.shape[:-1], length)


@lru_cache(maxsize=64)  # two octaves of semitones are 25 ratios
def _kernels(ratio: Fraction, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Windowed sincs (new, 1, 2 * reach + old) that make `new` output samples of `old` ones; kept,
    as copying them to a GPU makes the host wait."""
    old, new = ratio.numerator, ratio.denominator
    cutoff = ROLLOFF * min(1.0, new / old)  # of the input's Nyquist rate
    reach = math.ceil(ZERO_CROSSINGS / cutoff)
    # Output sample i of a block lies old / new * i input samples after the block's first.
    place = torch.arange(-reach, reach + old) - torch.arange(new)[:, None].double() * old / new
    hann = torch.cos(math.pi / 2 * (place / reach).clamp(-1, 1)).square()
    return (cutoff * torch.sinc(cutoff * place) * hann).to(device, dtype)[:, None]
