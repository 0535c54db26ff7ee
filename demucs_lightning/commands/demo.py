"""``make demo``: trains a small Hybrid Demucs on songs made on the spot and scores it.

The run is ``train.py experiment=demo``; this adds the scores of the untrained network, of silence
and of the mixture itself, on the held-out songs and on a real recording, and the stems and a
picture of that recording.
"""

import importlib.util
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from hydra.utils import instantiate
from torch import Tensor

from demucs_lightning import audio
from demucs_lightning.allocator import own_process
from demucs_lightning.commands import settings
from demucs_lightning.commands.explain import explained
from demucs_lightning.commands.train import run
from demucs_lightning.figures import overview
from demucs_lightning.metrics import new_sdr
from demucs_lightning.models import SeparationModel
from demucs_lightning.separation import Separation, normalized

RECORDING = "The Easton Ellises - Falcon 69.stem.mp4"
STREAMS = ("mixture", "drums", "bass", "other", "vocals")
Song = tuple[Tensor, Tensor]  # mixture (C, T) and stems (S, C, T)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo; further settings of the run may follow as key=value."""
    overrides = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with explained():
        demo(overrides)


def demo(overrides: Sequence[str]) -> None:
    cfg = settings.compose(["experiment=demo", *overrides])
    folder = Path("outputs") / time.strftime("demo-%Y-%m-%d-%H-%M-%S")
    recording = real_recording()
    held_out = instantiate(cfg.dset)(subset="test")
    songs = [(song["mixture"], song["stems"]) for song in held_out]

    torch.manual_seed(cfg.seed)
    before = instantiate(cfg.model, _convert_="all").eval()
    separates = instantiate(cfg.test)  # as a test set is separated
    rows = {
        "silence": silence,
        "the mixture itself": the_mixture,
        "before": normalized(partial(separates, before)),
    }
    started = time.monotonic()
    after = run(cfg, folder).model.cpu().eval()
    minutes = (time.monotonic() - started) / 60
    trained = normalized(partial(separates, after))
    rows[f"after {minutes:.1f} minutes"] = trained

    for title, tracks in ((f"{len(songs)} held-out songs", songs), ("real music", [recording])):
        found = {name: scores(separation, tracks) for name, separation in rows.items()}
        print(f"\n{table(title, after.sources, found)}")
    write_stems(folder / "recording", recording[0], trained, after)


def real_recording() -> Song:
    """Six seconds of a real four-stem recording, from the package stempeg, which carries it."""
    spec = importlib.util.find_spec("stempeg")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "the demo's real recording ships inside the package stempeg, which is not installed: "
            "pip install stempeg==0.2.6"
        )
    path = Path(spec.submodule_search_locations[0]) / "data" / RECORDING
    mixture, *stems = (audio.read(path, stream=index)[0] for index in range(len(STREAMS)))
    return mixture, torch.stack(stems)


def silence(mixture: Tensor) -> Tensor:
    """No sound for every stem: nSDR 0 by definition."""
    return torch.zeros(len(mixture), len(STREAMS) - 1, *mixture.shape[1:])


def the_mixture(mixture: Tensor) -> Tensor:
    """The mixture for every stem: what doing nothing scores."""
    return mixture[:, None].expand(-1, len(STREAMS) - 1, -1, -1)


def scores(separation: Separation, songs: Sequence[Song]) -> list[float]:
    """Mean nSDR of every source over the songs, in dB."""
    rows = [new_sdr(stems[None], separation(mixture[None]))[0] for mixture, stems in songs]
    return torch.stack(rows).mean(0).tolist()


def table(title: str, sources: Sequence[str], rows: Mapping[str, Sequence[float]]) -> str:
    """nSDR per source and their mean, one line for each of ``rows``."""
    lines = [f"{'nSDR (dB), ' + title:<32}" + "".join(f"{name:>9}" for name in (*sources, "mean"))]
    for name, values in rows.items():
        shown = (*values, sum(values) / len(values))
        lines.append(f"  {name:<30}" + "".join(f"{value:>9.2f}" for value in shown))
    return "\n".join(lines)


def write_stems(
    folder: Path, mixture: Tensor, separation: Separation, model: SeparationModel
) -> None:
    """The mixture and its stems as WAV files, and a picture of them; says where they are."""
    estimates = dict(zip(model.sources, separation(mixture[None])[0], strict=True))
    tracks = {"mixture": mixture, **estimates}
    folder.mkdir(parents=True, exist_ok=True)
    for name, track in tracks.items():
        audio.write(folder / f"{name}.wav", track, samplerate=model.samplerate, subtype="FLOAT")
    overview(tracks, model.samplerate).savefig(folder / "picture.png", dpi=110)
    print(f"\nThe real recording, separated, and a picture of it: {folder.absolute()}")


if __name__ == "__main__":
    own_process()
    main()
