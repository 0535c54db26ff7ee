"""One validation track to hear and see: audio and a spectrogram of every stem, in the logger.

To draw them takes the first process a second or two. It does so in a thread, as the others would
wait for it.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from demucs_lightning.figures import spectrogram


class Excerpts(Callback):
    """Shows ``seconds`` from the middle of the first validation track, every ``every`` epochs.

    TensorBoard and Weights & Biases show it, other loggers are left alone; with ``every`` 0 all.
    """

    def __init__(self, every: int = 10, seconds: float = 10.0) -> None:
        if seconds <= 0:
            raise ValueError(f"excerpt.seconds is {seconds}: it must be above 0.")
        self.every, self.seconds = every, seconds
        self._drawn: Future[None] | None = None

    def on_validation_batch_end(  # noqa: PLR0913
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        due = self.every and trainer.current_epoch % self.every == 0 and not trainer.sanity_checking
        if not (due and batch_idx == 0 and batch and trainer.is_global_zero):
            return
        samplerate = pl_module.model.samplerate
        middle = _middle(outputs[0], int(self.seconds * samplerate)).float().cpu()
        named = zip(pl_module.model.sources, middle, strict=True)
        excerpt = Excerpt(dict(named), samplerate, batch["track"][0], trainer.global_step)
        self._finish()
        thread = ThreadPoolExecutor(1)
        self._drawn = thread.submit(excerpt.show, trainer.loggers)
        thread.shutdown(wait=False)

    def _finish(self) -> None:
        """Wait for the last excerpt; what has failed with it is raised."""
        drawn, self._drawn = self._drawn, None
        if drawn is not None:
            drawn.result()

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self._finish()

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        drawn, self._drawn = self._drawn, None
        if drawn is not None:
            wait([drawn])


@dataclass(frozen=True)
class Excerpt:
    """``stems`` (C, T) of a validation track, after so many steps."""

    stems: dict[str, Tensor]
    samplerate: int
    track: str
    step: int

    def show(self, loggers: Sequence[Any]) -> None:
        """Give it to those loggers that can show it."""
        stems = {name: _audible(stem) for name, stem in self.stems.items()}
        for logger in loggers:
            if isinstance(logger, TensorBoardLogger):
                _to_tensorboard(logger, stems, self.samplerate, self.step)
            elif isinstance(logger, WandbLogger):
                _to_wandb(logger, stems, self.samplerate, self.track)


def _middle(stems: Tensor, length: int) -> Tensor:
    start = max(0, (stems.shape[-1] - length) // 2)
    return stems[..., start : start + length]


def _audible(stem: Tensor) -> Tensor:
    """Within ±0.9: in training, tracks are louder than a file can be."""
    return stem * (0.9 / stem.abs().max().clamp(min=0.9))


def _to_tensorboard(logger: Any, stems: dict[str, Tensor], samplerate: int, step: int) -> None:
    for name, stem in stems.items():
        # TensorBoard takes one channel.
        logger.experiment.add_audio(f"excerpt/{name}", stem.mean(0), step, samplerate)
        logger.experiment.add_figure(f"spectrogram/{name}", spectrogram(stem, samplerate), step)


def _to_wandb(logger: Any, stems: dict[str, Tensor], samplerate: int, track: str) -> None:
    import wandb  # pyright: ignore[reportMissingImports]

    shown: dict[str, Any] = {}
    for name, stem in stems.items():
        shown[f"excerpt/{name}"] = wandb.Audio(stem.T.numpy(), samplerate, caption=track)
        shown[f"spectrogram/{name}"] = wandb.Image(spectrogram(stem, samplerate))
    logger.experiment.log(shown)
