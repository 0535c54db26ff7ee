"""The singer of the demo songs: a source-filter voice (Fant, Acoustic Theory of Speech Production).

A pulse train with portamento, vibrato, jitter and breath passes through five formants, which move
from vowel to vowel; consonants are bursts of noise or short closures of the mouth. The filters act
on the short-time spectrum, so the whole melody is sung at once.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.fft import irfft, rfft
from scipy.signal.windows import hann

from demucs_lightning.data.band.instruments import SAMPLERATE, Audio, hertz, oscillator
from demucs_lightning.data.band.songwriter import Syllable

TICK = 128  # samples between two positions of the mouth
HOP, WINDOW = 256, 1024  # of the short-time spectrum
BINS = np.linspace(0, SAMPLERATE / 2, WINDOW // 2 + 1, dtype=np.float32)
_TAPER = np.sqrt(hann(WINDOW, sym=False) / 2).astype(np.float32)
FORMANTS = {  # hertz: the first three are Peterson & Barney's, JASA 24 (1952), for men
    "a": (730, 1090, 2440, 3400, 4400),
    "e": (530, 1840, 2480, 3500, 4400),
    "i": (270, 2290, 3010, 3600, 4500),
    "o": (570, 840, 2410, 3300, 4300),
    "u": (300, 870, 2240, 3300, 4300),
}
BANDWIDTHS = (90, 110, 150, 200, 280)
GAINS = (1.0, 0.7, 0.5, 0.35, 0.15)
CONSONANTS = {  # seconds, voicing meanwhile, then the noise: level, centre and width in hertz
    "": (0.0, 1.0, 0.0, 0, 1),
    "s": (0.09, 0.0, 0.25, 7500, 2000),
    "sh": (0.09, 0.0, 0.25, 3800, 1300),
    "f": (0.07, 0.0, 0.1, 6000, 4000),
    "t": (0.03, 0.0, 0.3, 5000, 2500),
    "k": (0.04, 0.0, 0.3, 2500, 1000),
    "m": (0.07, 0.35, 0.0, 0, 1),
    "n": (0.05, 0.4, 0.0, 0, 1),
    "l": (0.04, 0.5, 0.0, 0, 1),
}


class Singer:
    """A voice drawn from a generator; the higher its `register`, the shorter its vocal tract."""

    def __init__(self, rng: np.random.Generator, register: float) -> None:
        self.rng = rng
        self.tract = 1.0 + 0.014 * (register - 54) + rng.uniform(-0.05, 0.05)
        self.brightness = rng.uniform(0.85, 0.92)
        self.vibrato = (rng.uniform(4.8, 6.2), rng.uniform(0.2, 0.5))  # hertz, semitones
        self.jitter = rng.uniform(0.05, 0.12)  # semitones
        self.breath = rng.uniform(0.01, 0.04)
        self.glide = rng.uniform(0.05, 0.11)  # seconds from one pitch to the next

    def sing(self, syllables: list[Syllable], frames: int) -> Audio:
        """Sing a melody, (frames,)."""
        ticks = frames // TICK + 2
        loudness, pitch = self._breathe(syllables, ticks), self._intone(syllables, ticks)
        clock = np.arange(frames) / TICK
        frequency = np.interp(clock, np.arange(ticks), hertz(pitch))
        loudness = np.interp(clock, np.arange(ticks), loudness)
        air = self.rng.standard_normal(frames)
        pulses = oscillator(2 * np.pi * np.cumsum(frequency) / SAMPLERATE, self.brightness)
        throat = _spectrum(loudness * (pulses + self.breath * air))
        tongue = _spectrum(air)
        centres = np.arange(len(throat)) * HOP - WINDOW // 2
        now = np.clip(centres // TICK, 0, ticks - 1)
        spec = throat * self._vowels(syllables, pitch[now], now)
        spec += tongue * self._consonants(syllables, now)
        return _signal(spec, frames)

    def _breathe(self, syllables: list[Syllable], ticks: int) -> Audio:
        """How loud the voice is at every tick: closed in rests, hushed by consonants."""
        loudness = np.zeros(ticks)
        for syllable in syllables:
            seconds, voicing, *_ = CONSONANTS[syllable.consonant]
            first, last = _tick(syllable.start), _tick(syllable.start + syllable.length)
            vowel = first + _tick(seconds)
            loudness[first:vowel] = voicing * syllable.velocity
            loudness[vowel:last] = syllable.velocity * np.linspace(1, 0.8, last - vowel)
        return _smooth(loudness, 0.03)

    def _intone(self, syllables: list[Syllable], ticks: int) -> Audio:
        """The pitch at every tick: it glides between notes and long ones gather vibrato."""
        pitch, depth = np.full(ticks, syllables[0].pitch, float), np.zeros(ticks)
        for syllable in syllables:
            first = _tick(syllable.start)
            pitch[first:] = syllable.pitch
            held = np.arange(ticks - first) * TICK / SAMPLERATE
            depth[first:] = np.clip((held - 0.15) / 0.3, 0, 1)
        rate, width = self.vibrato
        vibrato = width * depth * np.sin(2 * np.pi * rate * np.arange(ticks) * TICK / SAMPLERATE)
        jitter = _smooth(self.rng.standard_normal(ticks), 0.04)
        return _smooth(pitch, self.glide) + vibrato + self.jitter * jitter / jitter.std()

    def _vowels(self, syllables: list[Syllable], pitch: Audio, now: NDArray[np.integer]) -> Audio:
        """The gain of the mouth, (N, F), where `now` holds the tick of every frame."""
        formants = np.zeros((5, now[-1] + 1))
        formants += np.array(FORMANTS[syllables[0].vowel])[:, None]
        for syllable in syllables:
            formants[:, _tick(syllable.start) :] = np.array(FORMANTS[syllable.vowel])[:, None]
        formants = self.tract * np.stack([_smooth(formant, 0.08) for formant in formants])[:, now]
        formants[0] = np.maximum(formants[0], hertz(pitch))  # singers tune the first to high notes
        gain = np.zeros((len(now), len(BINS)), np.float32)
        for centre, bandwidth, level in zip(formants, BANDWIDTHS, GAINS, strict=True):
            away = (BINS - centre.astype(np.float32)[:, None]) / (bandwidth / 2)
            gain += level / np.sqrt(1 + away * away)
        return gain

    def _consonants(self, syllables: list[Syllable], now: NDArray[np.integer]) -> Audio:
        """The gain of the noise between tongue and teeth, (N, F)."""
        gain = np.zeros((len(now), len(BINS)), np.float32)
        for syllable in syllables:
            seconds, _, level, centre, width = CONSONANTS[syllable.consonant]
            burst = np.hanning(_tick(seconds) * TICK // HOP + 3)[1:-1]
            first = np.searchsorted(now, _tick(syllable.start))
            colour = np.exp(-np.square((BINS - centre * self.tract) / width))
            window = gain[first : first + len(burst)]
            window += level * syllable.velocity * np.outer(burst[: len(window)], colour)
        return gain


def _spectrum(signal: Audio) -> NDArray[np.complexfloating]:
    """Short-time spectrum of (T,) under a square-root Hann window, (N, F)."""
    padded = np.pad(signal.astype(np.float32), (WINDOW, WINDOW))
    return np.asarray(rfft(sliding_window_view(padded, WINDOW)[::HOP] * _TAPER, axis=1))


def _signal(spec: NDArray[np.complexfloating], frames: int) -> Audio:
    """Overlap-add of (N, F) back into (frames,)."""
    pieces = np.asarray(irfft(spec, axis=1)) * _TAPER
    signal = np.zeros((len(pieces) + WINDOW // HOP, HOP), np.float32)
    for part in range(WINDOW // HOP):
        signal[part : part + len(pieces)] += pieces[:, part * HOP : (part + 1) * HOP]
    return signal.ravel()[WINDOW : WINDOW + frames]


def _tick(seconds: float) -> int:
    return round(seconds * SAMPLERATE / TICK)


def _smooth(signal: Audio, seconds: float) -> Audio:
    """Average over `seconds` under a Hann window; the ends are held."""
    window = hann(_tick(seconds) + 2)[1:-1]
    before = len(window) // 2
    padded = np.pad(signal, (before, len(window) - 1 - before), mode="edge")
    return np.convolve(padded, window / window.sum(), mode="valid")
