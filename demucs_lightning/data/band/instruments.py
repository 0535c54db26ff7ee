"""Strings, keys, pads and basses of the demo songs.

Every instrument is a *patch*: a timbre drawn once per song from a generator, then called with a
frequency in hertz and a length in seconds for a note of peak about 1, mono (T,) or stereo (2, T).
`play` puts notes on the stage, (2, frames) float32 at 44.1 kHz.
"""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft
from scipy.signal import butter, sosfilt

from demucs_lightning.data.band.songwriter import Note, generator

SAMPLERATE = 44100
Audio = NDArray[np.floating]
Patch = Callable[[float, float], Audio]


def hertz(pitch):
    """The frequency of a MIDI pitch, or an array of them, in equal temperament (A4 = 69 = 440)."""
    return 440.0 * 2 ** ((pitch - 69) / 12)


def oscillator(phase: Audio, brightness: float | Audio) -> Audio:
    """Harmonics of amplitudes bᵏ, where b < 1 is the brightness: Σ bᵏ sin kφ, scaled to peak 1."""
    phase = (phase % (2 * np.pi)).astype(np.float32)
    b = np.asarray(brightness, np.float32)
    return (1 - b * b) * np.sin(phase) / (1 - 2 * b * np.cos(phase) + b * b)


def clock(seconds: float) -> Audio:
    """The time of every sample of a sound, in seconds."""
    return np.arange(round(seconds * SAMPLERATE), dtype=np.float32) / SAMPLERATE


def tone_filter(audio: Audio, kind: str, cutoff: float | tuple[float, float], order: int = 2):
    """A Butterworth filter along the last axis; `kind` is lowpass, highpass or bandpass."""
    sections = butter(order, cutoff, kind, fs=SAMPLERATE, output="sos")
    return np.asarray(sosfilt(sections, audio), np.float32)


def place(stage: Audio, sound: Audio, start: float, *, gain: float = 1.0, pan: float = 0.0) -> None:
    """Add a sound to the stage (2, frames) at `start` seconds, cut where the stage ends.

    `pan` goes from -1 (left) to 1 (right) at constant power.
    """
    first = round(start * SAMPLERATE)
    sides = gain * np.sqrt(np.array([[1 - pan], [1 + pan]], np.float32) / 2)
    room = stage[:, first : first + sound.shape[-1]]
    room += sides * sound[..., : room.shape[-1]]


def play(patch: Patch, notes: Iterable[Note], frames: int, *, pan: float = 0.0) -> Audio:
    """Play notes on a patch; notes of equal pitch and length are made once."""
    stage = np.zeros((2, frames), np.float32)
    made: dict[tuple[float, int], Audio] = {}
    for note in notes:
        key = (note.pitch, max(round(50 * note.length), 1))
        if key not in made:
            made[key] = patch(hertz(note.pitch), key[1] / 50)
        place(stage, made[key], note.start, gain=note.velocity, pan=pan)
    return stage


def _phase(frequency: float, seconds: float) -> Audio:
    """The phase of a steady tone in radians; float64, as it grows beyond what float32 resolves."""
    return 2 * np.pi * frequency / SAMPLERATE * np.arange(round(seconds * SAMPLERATE))


def _gate(length: int, attack: float, release: float) -> Audio:
    """(length,) that opens within `attack` seconds and closes within the last `release` seconds."""
    rise = np.arange(length, dtype=np.float32) / (attack * SAMPLERATE)
    fall = np.arange(length, 0, -1, dtype=np.float32) / (release * SAMPLERATE)
    return np.minimum(np.minimum(rise, fall), 1)


def pluck(rng: np.random.Generator, *, softness: float = 0.7) -> Patch:
    """A plucked string: Karplus & Strong, Computer Music Journal 7 (1983), with a fractional delay.

    Instead of noise the string starts with the harmonics that the place of the pick leaves, which
    fall with their number to the power of `softness`.
    """
    seed, damping, drive = int(rng.integers(2**32)), rng.uniform(0.2, 0.5), rng.uniform(0.3, 2)
    ring, pick = rng.uniform(1.0, 3.0), rng.uniform(0.1, 0.3)

    def note(frequency: float, seconds: float) -> Audio:
        period = SAMPLERATE / frequency - damping
        delay, fraction = int(period), period % 1
        number = np.arange(1, delay // 2 + 1)
        harmonics = np.sin(np.pi * pick * number) / number**softness
        turns = np.exp(2j * np.pi * generator(seed).random(len(number)))
        burst = np.asarray(irfft([0, *(harmonics * turns)], delay))
        burst /= np.abs(burst).max()
        loss = 0.001 ** (1 / (frequency * ring))  # 60 dB within `ring` seconds
        loop = loss * np.convolve([1 - fraction, fraction], [1 - damping, damping])
        string = np.zeros(2 + delay + round((seconds + 0.1) * SAMPLERATE))
        string[2 : 2 + delay] = burst
        for now in range(2 + delay, len(string), delay):  # one trip along the string at a time
            trip = np.convolve(string[now - delay - 2 : now], loop, mode="valid")
            string[now : now + delay] = trip[: len(string) - now]
        string = np.tanh(drive * string) / np.tanh(drive)
        return (string * _gate(len(string), 0.001, 0.1)).astype(np.float32)

    return note


def electric_piano(rng: np.random.Generator) -> Patch:
    """Frequency modulation: a mellow tine below a short bell."""
    depth, ratio, decay = rng.uniform(0.6, 2), rng.choice([7.0, 9.0, 14.0]), rng.uniform(0.6, 1.4)
    tremolo, rate = rng.uniform(0.1, 0.4), rng.uniform(3, 6)

    def note(frequency: float, seconds: float) -> Audio:
        t, phase = clock(seconds + 0.15), _phase(frequency, seconds + 0.15)
        body = np.sin(phase + depth * np.exp(-t / 0.4) * np.sin(phase))
        bell = 0.3 * np.exp(-t / 0.08) * np.sin(ratio * phase)
        tone = (body + bell) * np.exp(-t / decay) * _gate(len(t), 0.003, 0.15)
        pan = tremolo * np.sin(2 * np.pi * rate * t)
        return (tone * np.stack([1 + pan, 1 - pan])).astype(np.float32)

    return note


def organ(rng: np.random.Generator) -> Patch:
    """Drawbars through a slowly turning speaker."""
    bars = rng.uniform(0.1, 1, size=6) * np.array([0.6, 1, 0.6, 0.6, 0.4, 0.3])
    rate = rng.uniform(1, 6)

    def note(frequency: float, seconds: float) -> Audio:
        t, phase = clock(seconds + 0.08), _phase(frequency, seconds + 0.08)
        phase = phase + 0.8 * np.sin(2 * np.pi * rate * t)
        tone = np.zeros(len(t))
        for bar, pipe in zip(bars, (0.5, 1, 1.5, 2, 3, 4), strict=True):
            tone += bar * np.sin(pipe * phase)
        turn = 0.3 * np.sin(2 * np.pi * rate * t)
        gate = _gate(len(t), 0.01, 0.08) / bars.sum()
        return (tone * gate * np.stack([1 + turn, 1 - turn])).astype(np.float32)

    return note


def pad(rng: np.random.Generator) -> Patch:
    """Detuned strings: each side has two voices of its own."""
    detune, brightness = rng.uniform(2, 6) / 1200, rng.uniform(0.55, 0.85)
    attack = rng.uniform(0.05, 0.3)

    def note(frequency: float, seconds: float) -> Audio:
        seconds += 0.3
        gate = _gate(round(seconds * SAMPLERATE), attack, 0.3)
        voices = [
            oscillator(_phase(frequency * (1 + cents * detune), seconds) + cents, brightness)
            for cents in (-1.0, 0.6, 1.0, -0.4)
        ]
        return 0.5 * gate * np.stack([voices[0] + voices[1], voices[2] + voices[3]])

    return note


def mallet(rng: np.random.Generator) -> Patch:
    """A struck bar: its partial dies before the fundamental."""
    partial, decay = rng.choice([3.0, 4.0]), rng.uniform(0.2, 0.5)
    shine = rng.uniform(0.2, 0.6)

    def note(frequency: float, seconds: float) -> Audio:
        t, phase = clock(seconds + 4 * decay), _phase(frequency, seconds + 4 * decay)
        bar = np.sin(phase) * np.exp(-t / decay)
        bell = shine * np.sin(partial * phase) * np.exp(-4 * t / decay)
        return ((bar + bell) * _gate(len(t), 0.002, 0.1)).astype(np.float32)

    return note


def synth_bass(rng: np.random.Generator) -> Patch:
    """A bright start that closes like a filter, over a sine."""
    bright, close, sub = rng.uniform(0.6, 0.88), rng.uniform(0.1, 0.4), rng.uniform(0.3, 1)

    def note(frequency: float, seconds: float) -> Audio:
        t, phase = clock(seconds + 0.03), _phase(frequency, seconds + 0.03)
        tone = oscillator(phase, 0.3 + (bright - 0.3) * np.exp(-t / close)) + sub * np.sin(phase)
        return (tone / (1 + sub) * _gate(len(t), 0.004, 0.03)).astype(np.float32)

    return note


def sub_bass(rng: np.random.Generator) -> Patch:
    """A driven sine."""
    drive, decay = rng.uniform(1, 3), rng.uniform(0.6, 2)

    def note(frequency: float, seconds: float) -> Audio:
        t, phase = clock(seconds + 0.05), _phase(frequency, seconds + 0.05)
        tone = np.tanh(drive * np.exp(-t / decay) * (np.sin(phase) + 0.3 * np.sin(2 * phase + 0.5)))
        return (tone * _gate(len(t), 0.006, 0.05)).astype(np.float32)

    return note


def picked_bass(rng: np.random.Generator) -> Patch:
    """A bass guitar: a plucked string, its treble rolled off."""
    string, tone = pluck(rng, softness=1.2), rng.uniform(600, 1800)
    return lambda frequency, seconds: tone_filter(string(frequency, seconds), "lowpass", tone)
