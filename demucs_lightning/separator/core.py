"""`Separator`: files or arrays in, stems out, at the rate and with the channels that came in."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from demucs_lightning import pretrained
from demucs_lightning.models import SeparationModel
from demucs_lightning.separation import BagOfModels, Level, Progress
from demucs_lightning.separation.engine import MAX_SHIFT, Settings, is_one_piece
from demucs_lightning.separator import files, writing
from demucs_lightning.separator.background import ahead
from demucs_lightning.separator.choice import Choice, Parts
from demucs_lightning.separator.flow import (
    Engine,
    Form,
    converted,
    even,
    mixture,
    separated,
    silence,
)
from demucs_lightning.separator.hardware import computing, devices_of, placed, precision_of
from demucs_lightning.separator.live import live
from demucs_lightning.separator.sources import (
    Source,
    checked_rate,
    opened,
    resized_length,
    survey,
)

ALMOST = 0.999  # of the progress: computed, but not yet at hand
AHEAD = 2  # blocks


class Separator:
    """Takes recordings apart with one model, on one device or several.

    ``model``: a released name, a path, ``hf://user/name``, a module or a `BagOfModels`, which stays
    as it is. ``device``: auto (a GPU where there is one), cpu, cuda, cuda:1, ..., or several, which
    share the chunks. ``shifts``, ``overlap``, ``segment`` (seconds; None: the model's own,
    math.inf: each recording in one piece), ``batch_size`` (None: what the device holds) and
    ``seed`` are those of `separation.separate`; a segment that all of a recording fits into, with
    the overlap, is one piece. ``precision``: fp32, bf16, fp16 (CUDA only), or auto, which is bf16
    on CUDA GPUs that have it, fp16 on older ones with tensor cores, and fp32 elsewhere.

    A recording may have any rate and any number of channels. Mono is given to a stereo model twice,
    and the stems are the mean of both channels. Of more channels than the model has, pairs (1 and
    2, 3 and 4, ...) are separated each by itself, and one that is left over as mono.

    Raises ValueError for a setting that doesn't fit, and what `pretrained.load_model` raises.
    """

    def __init__(  # noqa: PLR0913
        self,
        model: str | Path | nn.Module,
        *,
        device: str | torch.device | Sequence[str | torch.device] = "auto",
        shifts: int = 1,
        overlap: float = 0.25,
        segment: float | None = None,
        batch_size: int | None = None,
        precision: str = "auto",
        seed: int = 0,
    ) -> None:
        self.devices = devices_of(device)
        self.precision = precision_of(precision, self.devices[0])
        self._whole = segment == math.inf
        settings: dict[str, Any] = {
            "shifts": shifts,
            "overlap": overlap,
            "segment": None if self._whole else segment,
            "batch_size": batch_size,
            "seed": seed,
        }
        Settings(**settings)
        given = isinstance(model, nn.Module)
        found: Any = model if given else pretrained.load_model(model)
        if not isinstance(found, SeparationModel | BagOfModels):
            raise ValueError(
                f"{type(found).__name__} is no separation model: sources, samplerate, "
                "audio_channels, segment, max_segment and valid_length are needed."
            )
        if not self._whole and segment is not None and segment > float(found.max_segment):
            raise ValueError(
                f"segment is {segment}: the model takes chunks of at most "
                f"{float(found.max_segment):g} seconds, as long as it was trained on."
            )
        self.model = placed(found, self.devices, precision=self.precision, keep=given)
        self._engine = Engine(
            model=self.model,
            device=self.devices[0],
            computing=computing(found, self.devices[0], self.precision),
            settings=settings,
        )

    @property
    def sources(self) -> list[str]:
        """The names of the stems."""
        return list(self.model.sources)

    @property
    def samplerate(self) -> int:
        """The model's rate in Hz."""
        return self.model.samplerate

    @property
    def audio_channels(self) -> int:
        """How many channels the model hears together."""
        return self.model.audio_channels

    def separate(  # noqa: PLR0913
        self,
        source: str | Path | np.ndarray | Tensor,
        samplerate: int | None = None,
        *,
        stems: Sequence[str] | None = None,
        two_stems: str | None = None,
        other_method: str = "add",
        exact_sum: bool = False,
        progress: Progress | None = None,
    ) -> dict[str, Tensor]:
        """The parts of a recording by name, each (C, T) float32 on the CPU, as long as it is.

        ``source`` is a file or samples (C, T) or (T,) at ``samplerate`` Hz (None: at the model's):
        floats with full scale at 1, int16 or int32. `Choice` says what ``stems``, ``two_stems``,
        ``other_method`` and ``exact_sum`` do. ``progress`` is called with the part that is done, up
        to exactly 1. What doesn't run, such as the specialists of a bag for other stems, costs
        nothing.

        Raises ValueError for an unknown stem, and for a recording that is empty, damaged or not
        finite; FileNotFoundError and OSError where a file can't be read.
        """
        parts = Parts(Choice(stems, two_stems, other_method, exact_sum), self.model)
        recording = opened(source, samplerate, self.samplerate)
        pairs = self.parts(recording, parts, recording.samplerate, progress=progress)
        joined = torch.cat([block for block, _ in pairs], dim=-1)
        if progress is not None:
            progress(1.0)
        return dict(zip(parts.names, joined, strict=True))

    def separate_to(  # noqa: PLR0913
        self,
        path: str | Path,
        folder: str | Path,
        *,
        stems: Sequence[str] | None = None,
        two_stems: str | None = None,
        other_method: str = "add",
        exact_sum: bool = False,
        target: files.Target | None = None,
        progress: Progress | None = None,
    ) -> writing.Report:
        """Separate a file into files below ``folder``, in bounded memory however long it is.

        ``target`` says how the files are called and encoded; by default they are
        ``TRACK/STEM.wav``, at the rate, depth and channels of the input and with its tags. All
        else is as in `separate`. What can be known to fail does so before anything is computed,
        and a file has its name only when it is complete.

        Raises what `separate` raises; FileExistsError where a file is there already; OSError where
        one can't be written.
        """
        choice = Choice(stems, two_stems, other_method, exact_sum)
        if not isinstance(target, files.Target | None):
            raise ValueError(f"target is {target!r}: a Target was expected.")
        plan = files.plan(self, Path(path), Path(folder), choice, target)
        return writing.execute(self, plan, progress)

    def stream(
        self,
        blocks: Iterable[Tensor | np.ndarray],
        samplerate: int | None = None,
        *,
        stems: Sequence[str] | None = None,
        level: Level | None = None,
    ) -> Iterator[dict[str, Tensor]]:
        """Separate a recording while it is made: blocks (C, t) of any length in, parts (C, t) of it
        by stem out, as soon as the chunks that they lie in are complete.

        ``level`` is what `separation.statistics` finds in a recording like this one. None: that of
        the first chunk. Integers are scaled as in `separate`. Raises ValueError as `separate` does,
        for blocks as they come.
        """
        if isinstance(blocks, str | bytes | Path) or not isinstance(blocks, Iterable):
            raise ValueError(f"blocks is {blocks!r}: blocks of samples are wanted, and no file.")
        rate = self.samplerate if samplerate is None else checked_rate(samplerate)
        engine = self._engine.asked(
            stems=Parts(Choice(stems), self.model).stems,
            batch_size=self._engine.settings["batch_size"] or 1,  # chunks that wait for others
        )
        return live(engine, blocks, rate, level)

    def parts(
        self,
        source: Source,
        parts: Parts,
        rate: int,
        *,
        mixed: bool = False,
        progress: Progress | None = None,
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Blocks (P, C, t) of the parts of a recording at ``rate`` Hz, all of audio.BLOCK samples
        but the last, and where asked the mixture (C, t) of each."""
        known = survey(source, self.samplerate, self.audio_channels)
        length = resized_length(known.frames, source.samplerate, rate)
        form = Form(source.samplerate, source.channels)
        if known.peak == 0:  # a model may answer silence with a hum
            stems = silence(len(parts.stems), source.channels, length)
        else:
            engine = self._engine_for(known.frames, source, parts, progress)
            # Decoded and converted while the model computes.
            stems = separated(ahead(source), form, engine, levels=known.levels, depth=AHEAD)
            stems = converted(stems, self.samplerate, rate, length=lambda: length, depth=AHEAD)
        if not (mixed or parts.needs_mixture):
            for block in even(stems):
                yield parts.made(block, None), None
            return
        mixtures = ahead(mixture(source, form, rate, length))
        for block, mixed_block in zip(even(stems), mixtures, strict=True):
            yield parts.made(block, mixed_block), mixed_block if mixed else None

    def _engine_for(
        self, frames: int, source: Source, parts: Parts, progress: Progress | None
    ) -> Engine:
        length = resized_length(frames, source.samplerate, self.samplerate)
        settings: dict[str, Any] = {"stems": parts.stems, "length": length}
        if self._whole or is_one_piece(self.model, Settings(**self._engine.settings), length):
            settings["segment"] = self._in_one_piece(length)
            settings["overlap"] = 0  # or the end of a long chunk would be one of its own
        if progress is not None:
            settings["progress"] = lambda part: progress(min(part, ALMOST))
        return self._engine.asked(**settings)

    def _in_one_piece(self, length: int) -> float:
        """Seconds of a chunk that has room for all samples and a delay before them."""
        delay = MAX_SHIFT if self._engine.settings["shifts"] else 0
        seconds, most = length / self.samplerate, float(self.model.max_segment)
        if seconds + delay > most:
            raise ValueError(
                f"A recording of {seconds:.1f} seconds can't go in one piece: the model takes "
                f"{most - delay:.1f} at most, as long as it was trained on; with segment=None it "
                "is taken in chunks."
            )
        # A transformer hears all that it was trained on, with silence around what is shorter.
        return most if math.isfinite(most) else seconds + delay + 1 / self.samplerate
