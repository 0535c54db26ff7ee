"""Two ways to train a model from the same extracts: this project's, and the reference package's.

`Ours` goes the way of a run of train.py: threads that read 16-bit extracts into pinned memory, the
device normalises and augments them, autocast, the loss, the fused optimizer. `Reference` goes the
way of the reference's solver: worker processes that read floats (with soundfile, as its reader
needs torchaudio), its augmentation, its loss, the gradient norm that it logs, Adam in fp32.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import peer
import soundfile
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from demucs_lightning.allocator import kept
from demucs_lightning.augment import Augmentation
from demucs_lightning.compiled import Compiled
from demucs_lightning.data.extracts import Extracts, normalized
from demucs_lightning.data.loader import TrainingLoader
from demucs_lightning.data.sampler import ExtractOrder, fold_seed
from demucs_lightning.losses import SeparationLoss
from demucs_lightning.optim import Optimization

SAMPLERATE = 44100
SOURCES = ["drums", "bass", "other", "vocals"]


@dataclass(frozen=True)
class Recipe:
    """What both ways have in common. ``shift`` in seconds."""

    batch_size: int = 4
    lr: float = 3e-4
    clip_grad: float = 0.0
    shift: float = 1.0
    workers: int = 2
    device: str = "cpu"

    @property
    def group_size(self) -> int:
        return 4 if self.batch_size % 4 == 0 else 0


class Ours:
    """A step at a time of this project's training; ``precision`` is "fp32" or "bf16"."""

    keeping = staticmethod(kept)  # what is freed, as a run does

    def __init__(
        self,
        model: nn.Module,
        extracts: Extracts,
        recipe: Recipe,
        *,
        precision: str = "fp32",
        compile: str | None = None,
    ) -> None:
        self.model, self.recipe = model.to(recipe.device).train(), recipe
        self.call: Any = Compiled(model, compile) if compile else model
        self.precision, self.loss, self.number = precision, SeparationLoss().to(recipe.device), 0
        self.augment = Augmentation(
            SAMPLERATE, shift=recipe.shift, remix={"group_size": recipe.group_size}
        )
        settings = Optimization(lr=recipe.lr, clip_grad=recipe.clip_grad)
        self.optimizer = settings.optimizer(model)
        self.batches = self._batches(extracts)

    def _batches(self, extracts: Extracts) -> Iterator[Any]:
        order = ExtractOrder(len(extracts), self.recipe.batch_size, seed=0)
        pin = self.recipe.device.startswith("cuda")
        loader = TrainingLoader(extracts, order, threads=self.recipe.workers, pin=pin)
        for epoch in count():
            order.set_epoch(epoch)
            yield from loader

    def step(self) -> Tensor:
        device = torch.device(self.recipe.device)
        torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
        batch = next(self.batches)
        moved = {
            key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
        generator = torch.Generator(device).manual_seed(fold_seed(self.number, "augment"))
        stems = self.augment(normalized(moved), generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            estimates = self.call(stems.sum(1))
        loss = self.loss(estimates.to(stems), stems)[0]
        self.optimizer.zero_grad()
        loss.backward()
        if self.recipe.clip_grad:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad)
        self.optimizer.step()
        self.number += 1
        return loss.detach()


class Floats(Dataset):
    """The same extracts, read with soundfile and normalised one by one."""

    def __init__(self, extracts: Extracts) -> None:
        self.places = []
        for track in extracts.tracks:
            paths = [str(track.files[source].path) for source in extracts.sources]  # type: ignore
            for k in range(extracts._count(track)):
                start = int(SAMPLERATE * (extracts.shift or 0) * k)
                self.places.append((paths, start, track.mean, track.std))
        self.length = int((extracts.segment or 0) * SAMPLERATE)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor:
        paths, start, mean, std = self.places[index]
        stems = [soundfile.read(p, self.length, start, dtype="float32")[0] for p in paths]
        stems = (torch.from_numpy(np.stack(stems)).transpose(1, 2) - mean) / std
        return F.pad(stems, (0, self.length - stems.shape[-1]))


class Reference:
    """A step at a time of the reference's training."""

    keeping = staticmethod(nullcontext)

    def __init__(self, model: nn.Module, extracts: Extracts, recipe: Recipe) -> None:
        self.model, self.recipe = model.to(recipe.device).train(), recipe
        self.optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)
        self.augment = nn.Sequential(
            peer.augment.Shift(int(SAMPLERATE * recipe.shift)),
            peer.augment.FlipChannels(),
            peer.augment.FlipSign(),
            peer.augment.Scale(1, 0.25, 1.25),
            peer.augment.Remix(1, recipe.group_size),
        )
        self.batches = self._batches(Floats(extracts))

    def _batches(self, dataset: Floats) -> Iterator[Tensor]:
        order = torch.Generator().manual_seed(0)
        loader = DataLoader(
            dataset,
            self.recipe.batch_size,
            shuffle=True,
            drop_last=True,
            generator=order,
            num_workers=self.recipe.workers,
            persistent_workers=self.recipe.workers > 0,
        )
        while True:
            yield from loader

    def step(self) -> Tensor:
        torch.set_float32_matmul_precision("highest")
        stems = self.augment(next(self.batches).to(self.recipe.device))
        loss = F.l1_loss(self.model(stems.sum(1)), stems, reduction="none")
        loss = loss.mean((2, 3)).mean(0).mean()
        loss.backward()
        norms = [p.grad.data.norm() ** 2 for p in self.model.parameters() if p.grad is not None]
        self.norm = float(sum(norms, torch.zeros((), device=self.recipe.device)) ** 0.5)
        if self.recipe.clip_grad:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


@contextmanager
def noise_songs(count: int = 3, seconds: float = 30.0) -> Iterator[Path]:
    """A folder in the layout of MUSDB18-HQ with songs of noise, for as long as it is needed; the
    last of several is one for validation."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        names = [f"Song {song}" for song in range(count)]
        names[1:] = [*names[1:-1], "Leaf - Summerghost"][: count - 1]
        for name in names:
            home = Path(folder) / "train" / name
            home.mkdir(parents=True)
            stems = rng.integers(
                -4000, 4000, size=(4, int(seconds * SAMPLERATE), 2), dtype=np.int16
            )
            for source, stem in zip(SOURCES, stems, strict=True):
                soundfile.write(home / f"{source}.wav", stem, SAMPLERATE, subtype="PCM_16")
            mixture = stems.sum(0, dtype=np.int16)
            soundfile.write(home / "mixture.wav", mixture, SAMPLERATE, subtype="PCM_16")
        yield Path(folder)


def same_weights(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """What ``make`` gives from this seed: the classes of both packages, the same weights."""
    torch.manual_seed(seed)
    return make()
