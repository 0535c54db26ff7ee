"""Pitch and tempo of audio, changed independently, on any device and with torch alone.

A time stretch that keeps the pitch (`stretch`: waveform similarity overlap-add, Verhelst & Roelands
1993) is followed by a change of speed that moves pitch and duration together (`change_speed`:
windowed sinc). Rows are independent of each other; the channels of a row share every decision, so
the stereo image stays.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

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
    stretched = stretch(audio, audio.new_tensor(rates), length=needed, window=window)
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
    starts = [steady[:, :1]]
    for start in steady[:, 1:].split(1, dim=1):
        follows = _pieces(padded, starts[-1] + half, half)
        area = _pieces(padded, start - reach, half + 2 * reach)
        best = (_correlation(area, follows) - bias).argmax(dim=-1)
        starts.append(start + lags[best])
    return torch.cat(starts, dim=1)


def _pieces(audio: Tensor, starts: Tensor, size: int) -> Tensor:
    """The `size` samples from each of starts (R, K) of audio (R, C, T): (R, K, C, size)."""
    rows = torch.arange(len(audio), device=audio.device)[:, None]
    return audio.unfold(-1, size, 1)[rows, :, starts]


def _correlation(area: Tensor, template: Tensor) -> Tensor:
    """Normalised correlation, over channels and time, of template and area: (R, 1, lags)."""
    size, span = template.shape[-1], area.shape[-1]
    spectrum = torch.fft.rfft(area) * torch.fft.rfft(template, n=span).conj()
    product = torch.fft.irfft(spectrum, n=span)[..., : span - size + 1].sum(dim=-2)
    energy = F.pad(area.square().sum(dim=-2).cumsum(dim=-1), (1, 0))
    energy = (energy[..., size:] - energy[..., :-size]).clamp(min=0)
    total = energy * template.square().sum(dim=(-2, -1))[..., None]
    # A lag far quieter than the loudest would be divided by rounding noise.
    floor = 1e-9 + 1e-6 * total.amax(dim=-1, keepdim=True)
    return product / (total + floor).sqrt()


def change_speed(audio: Tensor, ratio: Fraction) -> Tensor:
    """Play audio (..., T) `ratio` times as fast, pitch and all: (..., ceil(T / ratio))."""
    if ratio == 1:
        return audio
    old, new = ratio.numerator, ratio.denominator
    cutoff = ROLLOFF * min(1.0, new / old)  # of the input's Nyquist rate
    reach = math.ceil(ZERO_CROSSINGS / cutoff)
    # Output sample i of a block lies old / new * i input samples after the block's first.
    place = torch.arange(-reach, reach + old) - torch.arange(new)[:, None].double() * old / new
    hann = torch.cos(math.pi / 2 * (place / reach).clamp(-1, 1)).square()
    kernels = (cutoff * torch.sinc(cutoff * place) * hann).to(audio)
    length = math.ceil(audio.shape[-1] / ratio)
    padded = F.pad(audio.reshape(-1, 1, audio.shape[-1]), (reach, reach + old))
    blocks = F.conv1d(padded, kernels[:, None], stride=old)  # (rows, new, blocks)
    return blocks.transpose(1, 2).flatten(1)[:, :length].reshape(*audio.shape[:-1], length)
