"""Pictures of sound: spectrograms and waveforms, as matplotlib figures that need no screen."""

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

RANGE = 80  # dB from the loudest to the darkest colour
POINTS = 2000  # columns of a waveform


def spectrogram(stem: Tensor, samplerate: int) -> Figure:
    """The levels in dB of ``stem (C, T)`` over time and frequency."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    figure.colorbar(_draw_spectrogram(axes, stem, samplerate), label="dB")
    axes.set(xlabel="seconds", ylabel="kHz")
    return figure


def overview(stems: Mapping[str, Tensor], samplerate: int) -> Figure:
    """One row for each of ``stems (C, T)``: its waveform and its spectrogram.

    All rows share their scales, so that what is loud in one is as loud in another.
    """
    figure = Figure(figsize=(14, 2.1 * len(stems)), layout="constrained")
    rows = figure.subplots(len(stems), 2, sharex=True, squeeze=False)
    peak = max(float(stem.abs().max()) for stem in stems.values()) or 1.0
    top = max(float(_levels(stem).max()) for stem in stems.values())
    for (wave, spec), (name, stem) in zip(rows, stems.items(), strict=True):
        _draw_waveform(wave, stem, samplerate)
        wave.set(ylabel=name, ylim=(-peak, peak))
        image = _draw_spectrogram(spec, stem, samplerate, top=top)
        spec.set(ylabel="kHz")
    for axes in rows[-1]:
        axes.set(xlabel="seconds")
    figure.colorbar(image, ax=rows[:, 1].tolist(), label="dB")
    return figure


def _draw_waveform(axes: Any, stem: Tensor, samplerate: int) -> None:
    """The least and greatest sample of every column, filled."""
    mono = stem.mean(0)
    columns = mono[: len(mono) // POINTS * POINTS or None].reshape(min(POINTS, len(mono)), -1)
    times = torch.linspace(0, len(mono) / samplerate, len(columns))
    low, high = columns.amin(1).tolist(), columns.amax(1).tolist()
    axes.fill_between(times.tolist(), low, high, linewidth=0.3, edgecolor="C0")
    axes.grid(visible=True, alpha=0.3)


def _draw_spectrogram(axes: Any, stem: Tensor, samplerate: int, *, top: float | None = None) -> Any:
    levels = _levels(stem)
    top = float(levels.max()) if top is None else top
    extent = (0, stem.shape[-1] / samplerate, 0, samplerate / 2000)
    return axes.imshow(
        levels.numpy(),
        origin="lower",
        aspect="auto",
        extent=extent,
        vmin=top - RANGE,
        vmax=top,
        cmap="magma",
    )


def _levels(stem: Tensor, n_fft: int = 2048) -> Tensor:
    """Magnitudes in dB of the mono sum of ``(C, T)``: ``(F, N)``."""
    mono = stem.detach().float().cpu().mean(0)
    window = torch.hann_window(n_fft)
    padded = torch.nn.functional.pad(mono, (0, max(0, n_fft - len(mono))))
    spec = torch.stft(padded, n_fft, n_fft // 4, window=window, return_complex=True)
    return 20 * torch.log10(spec.abs() + 1e-5)
