"""The drum kit of the demo songs: skins that sweep down, hissing snares, inharmonic metal."""

from collections.abc import Callable, Iterable

import numpy as np

from demucs_lightning.data.band.instruments import SAMPLERATE, Audio, clock, place, tone_filter
from demucs_lightning.data.band.songwriter import Hit

PLACES = {  # from -1 (left) to 1 (right), as the audience sees the drummer
    "kick": 0.05,
    "snare": 0.1,
    "hat": 0.35,
    "open hat": 0.35,
    "ride": -0.4,
    "crash": -0.5,
    "shaker": -0.3,
    "high tom": 0.3,
    "low tom": -0.5,
}


class DrumKit:
    """A kit tuned by a generator; each piece has two takes that take turns."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.tune, self.ring = rng.uniform(0.85, 1.2), rng.uniform(0.7, 1.4)
        self.metal = rng.uniform(2000, 6000, size=6)
        self.wires = rng.uniform(0.4, 0.9)
        self.takes = {piece: [make(), make()] for piece, make in self._pieces().items()}

    def play(self, hits: Iterable[Hit], frames: int) -> Audio:
        """Play (2, frames), each piece at its place on the stage, and tame the peaks."""
        stage = np.zeros((2, frames), np.float32)
        for count, hit in enumerate(hits):
            take = self.takes[hit.piece][count % 2]
            place(stage, take, hit.start, gain=hit.velocity, pan=PLACES[hit.piece])
        return np.tanh(1.2 * stage)

    def _pieces(self) -> dict[str, Callable[[], Audio]]:
        ring, wires = self.ring, self.wires
        return {
            "kick": lambda: _mix(self._skin(48, 0.09 * ring, 3), 0.25 * self._hiss(0.006, 1000)),
            "snare": lambda: _mix(
                (1 - wires) * self._skin(190, 0.07, 0.3),
                wires * self._hiss(0.09 * ring, 900, 12000),
            ),
            "hat": lambda: 0.4 * self._cymbal(0.03 * ring, 6500),
            "open hat": lambda: 0.4 * self._cymbal(0.16 * ring, 6000),
            "ride": lambda: 0.3 * self._cymbal(0.22 * ring, 4500),
            "crash": lambda: 0.4 * self._cymbal(0.45 * ring, 3000),
            "shaker": lambda: 0.3 * self._hiss(0.035, 5000, 14000),
            "high tom": lambda: _mix(0.8 * self._skin(150, 0.12, 0.6), 0.1 * self._hiss(0.01, 500)),
            "low tom": lambda: _mix(0.8 * self._skin(95, 0.16, 0.6), 0.1 * self._hiss(0.01, 500)),
        }

    def _skin(self, hertz: float, decay: float, sweep: float) -> Audio:
        """A tone that starts 1 + `sweep` times too high, as a struck skin is taut."""
        t = clock(5 * decay)
        tuned = hertz * self.tune * self.rng.uniform(0.99, 1.01)
        frequency = tuned * (1 + sweep * np.exp(-t / 0.03))
        body = np.sin(2 * np.pi * np.cumsum(frequency, dtype=np.float64) / SAMPLERATE)
        return (np.tanh(1.5 * body) * np.exp(-t / decay)).astype(np.float32)

    def _hiss(self, decay: float, low: float, high: float = 18000) -> Audio:
        t = clock(5 * decay)
        noise = self.rng.standard_normal(len(t))
        return tone_filter(noise, "bandpass", (low, high)) * np.exp(-t / decay)

    def _cymbal(self, decay: float, low: float) -> Audio:
        """Square waves of the kit's metal and noise, above `low` hertz."""
        t = clock(5 * decay)
        noise = 0.8 * self.rng.standard_normal(len(t))
        for frequency in self.metal:
            noise += np.sign(frequency * t % 1 - 0.5) / len(self.metal)
        return tone_filter(noise, "highpass", low, 4) * np.exp(-t / decay)


def _mix(first: Audio, second: Audio) -> Audio:
    """The sum of two sounds, as long as the longer one."""
    if len(first) < len(second):
        first, second = second, first
    return first + np.pad(second, (0, len(first) - len(second)))
