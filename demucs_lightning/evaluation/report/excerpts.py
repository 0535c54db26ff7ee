"""Players for the excerpts of a few tracks: sound for the page, and pictures of it."""

import base64
import logging
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from demucs_lightning import audio
from demucs_lightning.evaluation.report import spectrograms
from demucs_lightning.evaluation.report.markup import Markup, element, json_script, markup
from demucs_lightning.evaluation.results import Results, TrackResult, excerpt_folder
from demucs_lightning.figures import RANGE

logger = logging.getLogger(__name__)

# Every browser decodes MP3, on every system; of AAC, FLAC and Opus one or another does not.
SUFFIX = ".mp3"
PRESET = 7  # of the encoder: a third of the time of its default
BITRATES = (64, 192)  # kbit/s, the least and the most
DELAY = 1105  # samples, of this encoder and any decoder
MIXTURE = "mixture"


@dataclass(frozen=True)
class Sounds:
    """An excerpt ``(C, T)``: of the mixture, and reference and estimate of each source."""

    samplerate: int
    mixture: Tensor
    stems: dict[str, tuple[Tensor, Tensor]]

    @property
    def seconds(self) -> float:
        return self.mixture.shape[-1] / self.samplerate

    @property
    def streams(self) -> dict[str, Tensor]:
        """All that can be heard, by the names that the page's script knows."""
        found = {MIXTURE: self.mixture}
        for number, (reference, estimate) in enumerate(self.stems.values()):
            found |= {f"reference{number}": reference, f"estimate{number}": estimate}
        return found


def read_sounds(results: Results, track: TrackResult) -> Sounds | None:
    """The excerpt of a track; None, and a warning, where it isn't there or can't be read."""
    folder = excerpt_folder(results.folder, track.track)
    if track.excerpt is None or not folder.is_dir():
        return None
    try:
        mixture, samplerate = _read(folder, f"{MIXTURE}.flac")
        stems = {
            source: tuple(
                _read(folder, f"{source}.{kind}.flac")[0] for kind in ("reference", "estimate")
            )
            for source in track.sources
        }
    except (OSError, ValueError) as error:
        logger.warning("The report has no sound of %s: %s", track.track, error)
        return None
    length = min(sound.shape[-1] for pair in (*stems.values(), (mixture,)) for sound in pair)
    return Sounds(
        samplerate,
        mixture[:, :length],
        {name: (pair[0][:, :length], pair[1][:, :length]) for name, pair in stems.items()},
    )


def _read(folder: Path, name: str) -> tuple[Tensor, int]:
    if Path(name).name != name:  # a source's name from a stranger's file
        raise ValueError(f"{name!r} is no name of a file in {folder}.")
    sound, samplerate = audio.read(folder / name)
    return sound if len(sound) < 3 else audio.convert_channels(sound, 2), samplerate


def player(sounds: Sounds, *, label: str, bitrate: int) -> Markup:
    """The transport, a button for everything that can be heard, and the pictures.

    Works by the page's script alone, which finds all by ``data-`` attributes.
    """
    streams = {
        name: encoded(sound, sounds.samplerate, bitrate) for name, sound in sounds.streams.items()
    }
    data = {"seconds": sounds.seconds, "lead": lead(sounds), "streams": streams}
    return element(
        "section",
        _transport(label, sounds.seconds),
        _stems(sounds, label),
        json_script(data, data_sound=True),
        class_="player",
        data_player=True,
        aria_label=f"Player: {label}",
    )


def encoded(sound: Tensor, samplerate: int, bitrate: int) -> str:
    """``(C, T)`` as the base64 of an MP3 file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"sound{SUFFIX}"
        encoding = audio.Encoding(bitrate=bitrate, preset=PRESET)
        with audio.writer(
            path, samplerate=samplerate, channels=len(sound), encoding=encoding, clip=True
        ) as file:
            file.write(sound)
        return base64.b64encode(path.read_bytes()).decode()


def lead(sounds: Sounds) -> float:
    """Seconds of silence before the sound, for decoders that don't leave it out."""
    channels = len(sounds.mixture)
    rate = audio.check_encoder(
        Path(f"sound{SUFFIX}"), samplerate=sounds.samplerate, channels=channels
    )
    return DELAY / rate


def bitrate(sounds: Sounds, budget: int) -> int:
    """Kbit/s such that two excerpts like this fit into ``budget`` bytes, within limits."""
    fitting = budget / 2 * 0.75 * 8 / 1000 / (sounds.seconds * len(sounds.streams))
    return int(min(max(fitting, BITRATES[0]), BITRATES[1])) // 16 * 16


def size(sounds: Sounds, kilobits: int) -> int:
    """About how many bytes of the page a player takes, but for its pictures."""
    return math.ceil(kilobits * 1000 / 8 / 0.75 * sounds.seconds * len(sounds.streams))


def _transport(label: str, seconds: float) -> Markup:
    play = element("button", "Play", type="button", data_play=True, class_="play")
    seek = element(
        "input",
        type="range",
        min=0,
        max=f"{seconds:.3f}",
        step=0.01,
        value=0,
        data_seek=True,
        aria_label="Position in seconds",
    )
    time = element("output", f"0.0 / {seconds:.1f} s", data_time=True, aria_live="off")
    loop = element("label", element("input", type="checkbox", data_loop=True), "Loop")
    mixture = _choice(label, MIXTURE, "Mixture", checked=True)
    status = element("p", data_status=True, role="status", class_="status")
    return element("div", play, seek, time, loop, mixture, status, class_="transport")


def _choice(label: str, stream: str, text: str, *, checked: bool = False) -> Markup:
    """A radio button that looks like a button."""
    radio = element(
        "input",
        type="radio",
        name=f"stream of {label}",
        value=stream,
        data_stream=True,
        checked=checked,
    )
    return element("label", radio, element("span", text), class_="choice")


def _stems(sounds: Sounds, label: str) -> Markup:
    flat = [
        sound
        for reference, estimate in sounds.stems.values()
        for sound in (reference, estimate, estimate - reference)
    ]
    found = spectrograms.pictures(flat, sounds.samplerate)
    rows = []
    for number, source in enumerate(sounds.stems):
        reference, estimate, error = found[3 * number : 3 * number + 3]
        heard = (("Reference", reference), ("Estimate", estimate))
        cells = [
            _picture(
                sounds,
                picture,
                f"{kind} of {source}",
                _choice(label, f"{kind.lower()}{number}", kind),
            )
            for kind, picture in heard
        ]
        caption = element("span", "Error", class_="unheard")
        cells.append(_picture(sounds, error, f"Error of {source}", caption))
        group = {"class_": "stem", "role": "group", "aria_label": source}
        rows.append(element("div", element("h4", source), *cells, **group))
    return markup(*rows, _scale())


def _picture(sounds: Sounds, png: bytes, name: str, caption: Markup) -> Markup:
    image = element(
        "image", href=data_url(png), width="100%", height="100%", preserveAspectRatio="none"
    )
    marks = [
        markup(
            element("line", x1=0, x2=6, y1=f"{place:.1f}%", y2=f"{place:.1f}%"),
            element("text", text, x=9, y=f"{place:.1f}%", dy="0.32em"),
        )
        for text, place in spectrograms.frequencies(sounds.samplerate)
    ]
    head = element("line", x1="0", x2="0", y1="0", y2="100%", class_="head", data_head=True)
    drawing = element(
        "svg",
        image,
        *marks,
        head,
        class_="spectrogram",
        role="img",
        aria_label=f"Spectrogram: {name}",
        data_seekable=True,
    )
    return element("figure", element("figcaption", caption), drawing)


def _scale() -> Markup:
    """What the colours stand for."""
    bar = element("img", src=data_url(spectrograms.legend()), alt="", class_="bar")
    text = (
        f"{RANGE} dB from the darkest to the brightest colour, the same in all pictures of a "
        "track. Frequencies are in Hz."
    )
    return element("p", bar, " ", text, class_="note")


def data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
