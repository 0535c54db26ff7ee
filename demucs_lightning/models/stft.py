"""Between waveforms and spectrograms: the STFT, its inverse, and what a network sees of them.

A ``spec`` is complex, ``(..., F, N)``, normalised by the square root of the window's length (Hann).
The Nyquist bin is dropped on the way in and zero on the way out, so that F = n_fft / 2 is a power
of two. ``Spectral`` holds one model's choices; it has no parameters and needs no gradient of its
own.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def stft(audio: Tensor, n_fft: int, hop_length: int) -> Tensor:
    """``(..., T)`` to ``(..., n_fft / 2 + 1, ⌊T / hop_length⌋ + 1)``, frames centred, edges
    reflected."""
    *lead, length = audio.shape
    audio = audio.reshape(-1, length)
    window = torch.hann_window(n_fft, device=audio.device, dtype=audio.dtype)
    spec = torch.stft(
        audio,
        n_fft,
        hop_length,
        window=window,
        normalized=True,
        pad_mode="reflect",
        return_complex=True,
    )
    return spec.view(*lead, *spec.shape[-2:])


def istft(spec: Tensor, hop_length: int, length: int) -> Tensor:
    """``(..., F, N)`` with all n_fft / 2 + 1 bins to ``(..., length)``."""
    *lead, bins, frames = spec.shape
    n_fft = 2 * bins - 2
    window = torch.hann_window(n_fft, device=spec.device, dtype=spec.real.dtype)
    audio = torch.istft(
        spec.reshape(-1, bins, frames),
        n_fft,
        hop_length,
        window=window,
        normalized=True,
        length=length,
    )
    return audio.view(*lead, length)


def overlap_add(spec: Tensor, hop_length: int) -> Tensor:
    """``(..., F, N)`` without the Nyquist bin, with hops of F / 2, to ``(..., (N + 3) *
    hop_length)``: frame n starts at sample n · hop_length.

    Four windows overlap everywhere but at the ends, where the sound is faded. Beside ``istft``, it
    saves three passes over all frames.
    """
    n_fft, frames = 2 * spec.shape[-2], spec.shape[-1]
    window = torch.hann_window(n_fft, device=spec.device, dtype=spec.real.dtype)
    window = window.mul_(n_fft**0.5 / 1.5)  # the squares of four Hann windows add up to 1.5
    pieces = torch.fft.irfft(spec.movedim(-1, 0), n=n_fft).unflatten(-1, (-1, hop_length))
    audio = pieces.new_zeros(frames + 3, *spec.shape[:-2], hop_length)
    # Backward of unbind is one pass, of four slices four passes and their sums.
    parts = zip(pieces.unbind(-2), window.view(-1, hop_length), strict=True)
    for quarter, (piece, part) in enumerate(parts):
        audio[quarter : quarter + frames].addcmul_(piece, part)
    return audio.movedim(0, -2).flatten(-2)


def pad_reflect(x: Tensor, left: int, right: int) -> Tensor:
    """Reflect ``x (..., T)`` at its ends; where T is too short for that, zeros first make it just
    long enough."""
    lack = max(left, right) - x.shape[-1] + 1
    if lack > 0:
        zeros_right = min(right, lack)
        zeros_left = lack - zeros_right
        x = F.pad(x, (zeros_left, zeros_right))
        left, right = left - zeros_left, right - zeros_right
    return F.pad(x, (left, right), mode="reflect")


@dataclass(frozen=True)
class Spectral:
    """How a model turns a mixture into a spectrogram, and its output back into sound.

    Attributes:
        n_fft: bins of the Fourier transform; the hop is a quarter of it.
        cac: complex as channels: real and imaginary parts are channels in and out. Else magnitudes
            in, and magnitudes out to which the mixture's phase is added.
        aligned: exactly ⌈T / hop⌉ frames, so that a convolution with the same stride over the
            waveform lines up.
        zero_padded: aligned with zeros at the edges, the fault of the first hybrid models
            (``hybrid_old``).
    """

    n_fft: int
    cac: bool = True
    aligned: bool = True
    zero_padded: bool = False

    @property
    def hop_length(self) -> int:
        return self.n_fft // 4

    def spec(self, audio: Tensor) -> Tensor:
        """``(B, C, T)`` real to ``(B, C, F, N)`` complex, in fp32 or better."""
        audio = audio if audio.dtype == torch.float64 else audio.float()
        if not self.aligned:
            return stft(audio, self.n_fft, self.hop_length)[..., :-1, :]
        frames = math.ceil(audio.shape[-1] / self.hop_length)
        left = self.hop_length // 2 * 3
        right = left + frames * self.hop_length - audio.shape[-1]
        padded = (
            F.pad(audio, (left, right)) if self.zero_padded else pad_reflect(audio, left, right)
        )
        return stft(padded, self.n_fft, self.hop_length)[..., :-1, 2 : 2 + frames]

    def audio(self, spec: Tensor, length: int) -> Tensor:
        """``(..., F, N)`` complex to ``(..., length)`` real, the inverse of ``spec``."""
        if not self.aligned:
            return istft(F.pad(spec, (0, 0, 0, 1)), self.hop_length, length)
        if self.zero_padded:  # matches demucs 4: what was padded on the left is not cut off again
            return istft(F.pad(spec, (2, 2, 0, 1)), self.hop_length, length)
        left = self.hop_length // 2 * 3
        return overlap_add(spec, self.hop_length)[..., left : left + length]

    def to_channels(self, spec: Tensor) -> Tensor:
        """``(B, C, F, N)`` complex to what the network sees, ``(B, 2C or C, F, N)`` real, channels
        last."""
        if not self.cac:
            return spec.abs()
        parts = torch.view_as_real(spec.permute(0, 2, 3, 1).contiguous())
        return parts.flatten(3).permute(0, 3, 1, 2)

    def from_channels(self, output: Tensor, spec: Tensor, *, floored: bool) -> Tensor:
        """The network's ``(B, S, 2C or C, F, N)`` to ``(B, S, C, F, N)`` complex; ``spec`` is the
        mixture's.

        Of the mixture only the phase is used, and only without ``cac``: as ``spec / (1e-8 +
        |spec|)`` if ``floored``, else with the phase 0 where the mixture is 0 (as the first step of
        a Wiener filter takes it).
        """
        if self.cac:
            parts = output.unflatten(2, (-1, 2)).permute(0, 1, 2, 4, 5, 3)
            # Of channels that lie last, the parts are neighbours already.
            neighbours = parts.stride(-1) == 1
            return torch.view_as_complex(parts if neighbours else parts.contiguous())
        if floored:
            return (spec / (1e-8 + spec.abs()))[:, None] * output
        return torch.polar(torch.ones_like(spec.real), spec.angle())[:, None] * output
