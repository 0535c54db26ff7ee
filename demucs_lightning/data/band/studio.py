"""Record the demo songs: every musician plays a part, in a room of its own, and the desk mixes.

`perform` is a pure function of a song. The stems come out about as loud as each other, in stereo
that survives mono, and quantised, so that their sum in integers is the mixture.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.signal import oaconvolve

from demucs_lightning.data.band import instruments
from demucs_lightning.data.band.drums import DrumKit
from demucs_lightning.data.band.instruments import (
    SAMPLERATE,
    Audio,
    clock,
    play,
    tone_filter,
)
from demucs_lightning.data.band.singer import Singer
from demucs_lightning.data.band.songwriter import Song, generator

SOURCES = ("drums", "bass", "other", "vocals")
PEAK = 0.9
BALANCE = 1.0  # dB that a stem may be louder or softer than equal
BASSES = (
    *(instruments.picked_bass, instruments.picked_bass),
    *(instruments.synth_bass, instruments.sub_bass),
)
CHORDS = (instruments.pluck, instruments.electric_piano, instruments.organ)
LEADS = (instruments.mallet, instruments.pluck)


def perform(song: Song) -> NDArray[np.int16]:
    """Play and mix a song: stems (S, 2, T) int16, in the order of SOURCES, that sum to PEAK."""
    frames = round(song.seconds * SAMPLERATE)
    dice = [generator(*song.plan.seed, 2 + number) for number in range(5)]
    parts = (_drums, _bass, _other, _vocals)
    stems = np.stack([part(song, rng, frames) for part, rng in zip(parts, dice, strict=False)])
    levels = 10 ** (dice[-1].uniform(-BALANCE, BALANCE, size=len(stems)) / 20)
    fade = np.minimum(np.arange(frames, 0, -1, dtype=np.float32) / (0.4 * SAMPLERATE), 1)
    stems *= (levels / stems.std(axis=(1, 2))).astype(np.float32)[:, None, None] * fade
    stems *= PEAK * 2**15 / np.abs(stems.sum(0)).max()
    return np.round(stems).astype(np.int16)


def _drums(song: Song, rng: np.random.Generator, frames: int) -> Audio:
    drums = DrumKit(rng).play(song.drums, frames)
    return reverb(drums, rng, seconds=rng.uniform(0.25, 0.6), wet=rng.uniform(0.1, 0.25))


def _bass(song: Song, rng: np.random.Generator, frames: int) -> Audio:
    bass = play(BASSES[rng.integers(len(BASSES))](rng), song.bass, frames)
    return reverb(bass, rng, seconds=0.2, wet=0.15)


def _other(song: Song, rng: np.random.Generator, frames: int) -> Audio:
    """Chords to one side, a lead to the other, strings around both."""
    chords = CHORDS[rng.integers(len(CHORDS))](rng)
    lead = LEADS[rng.integers(len(LEADS))](rng)
    side = float(rng.uniform(0.2, 0.6) * rng.choice([-1, 1]))
    layers = (
        (1.0, play(chords, song.strum, frames, pan=side)),
        (rng.uniform(0.4, 0.8), play(instruments.pad(rng), song.pad, frames)),
        (rng.uniform(0.5, 0.8), play(lead, song.arpeggio, frames, pan=-side)),
    )
    other = np.zeros((2, frames), np.float32)
    for level, layer in layers:
        other += level / layer.std() * layer
    other = echo(other, 45 / song.plan.tempo, feedback=rng.uniform(0.1, 0.3))
    return reverb(other, rng, seconds=rng.uniform(0.6, 1.2), wet=rng.uniform(0.2, 0.4))


def _vocals(song: Song, rng: np.random.Generator, frames: int) -> Audio:
    """The lead in the middle and two later takes of it at the sides."""
    lead = Singer(rng, song.register).sing(song.melody, frames)
    sides = [double(lead, delay=rng.uniform(0.012, 0.03)) for _ in range(2)]
    vocals = lead + rng.uniform(0.15, 0.5) * np.stack(sides)
    return reverb(vocals, rng, seconds=rng.uniform(0.8, 1.5), wet=rng.uniform(0.2, 0.35))


def echo(dry: Audio, seconds: float, *, feedback: float) -> Audio:
    """Three echoes of (2, T) that bounce between the sides, each `feedback` times the last."""
    wet, lag = dry.copy(), round(seconds * SAMPLERATE)
    for bounce in (1, 2, 3):
        late = dry if bounce % 2 == 0 else dry[::-1]
        wet[:, bounce * lag :] += feedback**bounce * late[:, : -bounce * lag]
    return wet


def double(lead: Audio, *, delay: float, depth: float = 0.003) -> Audio:
    """A second take of (T,): `delay` seconds late and slowly drifting in time, hence in pitch."""
    now = np.arange(len(lead))
    lag = SAMPLERATE * (delay + depth * np.sin(2 * np.pi * 0.7 / SAMPLERATE * now))
    return np.interp(now - lag, now, lead).astype(np.float32)


def reverb(dry: Audio, rng: np.random.Generator, *, seconds: float, wet: float) -> Audio:
    """(2, T) in a room that decays by 60 dB in `seconds`, `wet` times as loud as the dry sound."""
    t = clock(seconds)
    room = rng.standard_normal((2, len(t))) * np.exp(-6.9 * t / seconds)
    room = tone_filter(room, "bandpass", (200, 7000), 1)
    room[:, : round(0.012 * SAMPLERATE)] = 0
    room *= wet / np.sqrt(np.square(room).sum(1, keepdims=True))
    return dry + oaconvolve(dry, room, axes=1)[:, : dry.shape[1]]
