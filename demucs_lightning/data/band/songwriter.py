"""Plan the demo songs, and the words that all musicians share: notes, chords, bars, songs.

Times are seconds, pitches MIDI numbers (60 is middle C, a pitch class is a pitch modulo 12).
`plan_songs` gives every song its own title, key, tempo and progressions, so that held-out songs
share none of them with the training songs.
"""

from dataclasses import dataclass, field

import numpy as np

SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
PROGRESSIONS = {  # a scale degree a bar, counted from 0
    "major": ("0453", "0534", "5304", "0304", "1405", "3425", "0354", "0243"),
    "minor": ("0526", "0340", "0656", "0362", "5600", "0263", "3052", "0645"),
}
ADJECTIVES = (
    *("Paper", "Amber", "Northern", "Silent", "Velvet", "Crooked"),
    *("Golden", "Distant", "Salted", "Winter", "Hollow", "Electric"),
)
NOUNS = (
    *("Lanterns", "Harbour", "Orchard", "Letters", "Meridian", "Sparrow"),
    *("Avenue", "Tide", "Carousel", "Bridges", "Fireflies", "Attic"),
)


@dataclass(frozen=True)
class Note:
    """One note: start and length in seconds, MIDI pitch, velocity in 0..1."""

    start: float
    length: float
    pitch: float
    velocity: float = 1.0


@dataclass(frozen=True)
class Syllable(Note):
    """A sung note: the vowel that carries the pitch, and the consonant before it, if any."""

    vowel: str = "a"
    consonant: str = ""


@dataclass(frozen=True)
class Hit:
    """One stroke on a piece of the drum kit."""

    start: float
    piece: str
    velocity: float


@dataclass(frozen=True)
class Bar:
    """A bar of four beats: its section, its place in it, its chord (MIDI pitches, root first)."""

    start: float
    length: float
    section: str
    place: int
    last: bool
    chord: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What distinguishes a song before a note is written; `seed` draws all the rest."""

    title: str
    tempo: float
    tonic: int
    mode: str
    progressions: dict[str, str]
    seed: tuple[int, ...]

    @property
    def scale(self) -> tuple[int, ...]:
        """The seven pitch classes of the key, the tonic first."""
        return tuple((self.tonic + interval) % 12 for interval in SCALES[self.mode])

    def chord(self, degree: int, size: int) -> tuple[int, ...]:
        """`size` thirds piled up on a degree of the scale, as MIDI pitches of the lowest octave."""
        degrees = range(degree, degree + 2 * size, 2)
        return tuple(self.tonic + 12 * (d // 7) + SCALES[self.mode][d % 7] for d in degrees)


@dataclass(frozen=True)
class Song:
    """A written song; `seconds` includes the bar in which the last chord rings out."""

    plan: Plan
    seconds: float
    register: float
    bars: list[Bar]
    drums: list[Hit] = field(default_factory=list)
    bass: list[Note] = field(default_factory=list)
    strum: list[Note] = field(default_factory=list)
    pad: list[Note] = field(default_factory=list)
    arpeggio: list[Note] = field(default_factory=list)
    melody: list[Syllable] = field(default_factory=list)


def generator(*seed: int) -> np.random.Generator:
    """The only source of chance: equal seeds draw equal numbers."""
    return np.random.Generator(np.random.PCG64(seed))


def plan_songs(count: int, *, seed: int = 0) -> list[Plan]:
    """Plan `count` songs; up to 24 of them differ in key and progressions, up to 144 in title."""
    rng = generator(seed)
    keys = rng.permutation(24)
    pairs = rng.permutation([(i, j) for i in range(8) for j in range(8) if i != j])
    adjectives, nouns = rng.permutation(ADJECTIVES), rng.permutation(NOUNS)
    plans = []
    for index in range(count):
        tonic, minor = divmod(int(keys[index % 24]), 2)
        mode = "minor" if minor else "major"
        verse, chorus = (PROGRESSIONS[mode][i] for i in pairs[index % len(pairs)])
        lap, place = divmod(index, 12)
        plan = Plan(
            title=f"{adjectives[place]} {nouns[(place + lap) % 12]}",
            tempo=84 + 48 * (0.618034 * index % 1),  # steps of the golden ratio: all far apart
            tonic=tonic,
            mode=mode,
            progressions={"verse": verse, "chorus": chorus},
            seed=(seed, index),
        )
        plans.append(plan)
    return plans
