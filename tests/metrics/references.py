"""museval's own numbers, and audio to compare with them."""

from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from demucs_lightning import audio
from tests.audio.sounds import stempeg_song


@cache
def museval_metrics() -> ModuleType:
    """museval/metrics.py alone: importing the package asks for ffmpeg."""
    found = find_spec("museval")
    assert found is not None
    assert found.origin is not None
    spec = spec_from_file_location("museval_metrics", Path(found.origin).with_name("metrics.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def museval(
    references: Tensor, estimates: Tensor, *, window: int, hop: int, taps: int
) -> np.ndarray:
    """SDR, ISR, SIR and SAR (4, S, windows) of (S, C, T)."""
    both = (each.double().transpose(1, 2).numpy() for each in (references, estimates))
    scores = museval_metrics().bss_eval(*both, window=window, hop=hop, filters_len=taps)
    return np.stack(scores[:4])


def music(sources: int, channels: int, samples: int, *, seed: int = 0) -> Tensor:
    """Noise of a falling spectrum, float64."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(sources, channels, samples + 50, generator=generator, dtype=torch.float64)
    kernel = (0.7 ** torch.arange(51, dtype=torch.float64))[None, None]
    flat = torch.nn.functional.conv1d(noise.flatten(0, 1)[:, None], kernel)
    return 0.1 * flat.view(sources, channels, samples)


def separated(references: Tensor, *, noise: float = 0.02) -> Tensor:
    """Estimates that are wrong in every way: level, filter, channels, leakage and noise."""
    generator = torch.Generator().manual_seed(1)
    white = torch.randn(references.shape, generator=generator, dtype=torch.float64)
    return (
        0.8 * references
        + 0.1 * references.roll(3, -1)
        + 0.05 * references.roll(1, 1)
        + 0.1 * references.roll(1, 0)
        + noise * white
    )


def masked(references: Tensor) -> Tensor:
    """Estimates as many a separator makes them: the mixture's STFT times ratios of magnitudes."""
    window = torch.hann_window(4096, dtype=references.dtype)
    flat = references.flatten(0, 1)
    spec = torch.stft(flat, 4096, 1024, window=window, return_complex=True)
    spec = spec.unflatten(0, references.shape[:2])
    found = (spec.abs() / (spec.abs().sum(0) + 1e-9) * spec.sum(0)).flatten(0, 1)
    return torch.istft(found, 4096, 1024, window=window, length=flat.shape[-1]).view_as(references)


def recording() -> Tensor:
    """The four stems of a real song, 6 s of stereo: (4, 2, T)."""
    return torch.stack([audio.read(stempeg_song(), stream=index)[0] for index in range(1, 5)])
