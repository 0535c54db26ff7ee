"""Excerpts are drawn beside training, which doesn't wait for them, and none is lost."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from demucs_lightning.callbacks import excerpts
from demucs_lightning.figures import spectrogram

SOURCES = ["drums", "bass"]


def shown(callback: excerpts.Excerpts, folder: Path, *, step: int = 3) -> Any:
    """The end of the first validation track; the trainer of it."""
    trainer: Any = SimpleNamespace(
        current_epoch=0,
        sanity_checking=False,
        is_global_zero=True,
        loggers=[TensorBoardLogger(str(folder), name="", version="")],
        global_step=step,
    )
    module = SimpleNamespace(model=SimpleNamespace(samplerate=8000, sources=SOURCES))
    stems = torch.randn(1, 2, 2, 16_000)
    callback.on_validation_batch_end(trainer, module, stems, {"track": ["a song"]}, 0)
    return trainer


@pytest.mark.parametrize("end", ["teardown", "on_exception"])
def test_training_goes_on_while_an_excerpt_is_drawn(tmp_path, monkeypatch, end):
    goes_on, threads = threading.Event(), set()

    def patient(stem, samplerate):
        assert goes_on.wait(timeout=20)
        threads.add(threading.get_ident())
        return spectrogram(stem, samplerate)

    monkeypatch.setattr(excerpts, "spectrogram", patient)
    callback = excerpts.Excerpts(seconds=1.0)
    trainer = shown(callback, tmp_path)  # would wait, if it were drawn here
    goes_on.set()
    getattr(callback, end)(trainer, None, "fit")
    assert threading.get_ident() not in threads
    trainer.loggers[0].finalize("success")
    events = EventAccumulator(str(tmp_path), size_guidance={"audio": 0, "images": 0})
    events.Reload()
    tags: Any = events.Tags()
    assert set(tags["images"]) == {f"spectrogram/{name}" for name in SOURCES}
    assert [clip.step for clip in events.Audio("excerpt/bass")] == [3]


def test_what_fails_is_told_by_the_next_or_at_the_end(tmp_path, monkeypatch):
    def broken(stem, samplerate):
        raise OSError("No space left on device")

    monkeypatch.setattr(excerpts, "spectrogram", broken)
    callback = excerpts.Excerpts(seconds=1.0)
    shown(callback, tmp_path)
    with pytest.raises(OSError, match="No space left"):
        shown(callback, tmp_path, step=4)
    trainer = shown(callback, tmp_path, step=5)
    with pytest.raises(OSError, match="No space left"):
        callback.teardown(trainer, None, "fit")
    callback.teardown(trainer, None, "fit")
    callback.on_exception(shown(callback, tmp_path), None, ValueError())  # has its own reason
