"""Write the parts of a planned song: drums, bass, strummed chords, pad, arpeggio and melody.

Rhythm is written in sixteenths, a character each. A kind of section keeps its patterns, drawn once
per song, so that a chorus is recognised when it returns. The melody works in phrases of two bars: a
motif, which comes back over other chords, and an answer that ends in a rest.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from demucs_lightning.data.band.songwriter import Bar, Hit, Note, Plan, Song, Syllable, generator

STEPS = 16
GROOVES = (
    {"kick": "X.....x.x.......", "snare": "....X.......X...", "hat": "x.o.x.o.x.o.x.o."},
    {"kick": "X.....x...x.....", "snare": "....X..o.o..X...", "hat": "xoxoxoxoxoxoxoxo"},
    {"kick": "X...X...X...X...", "snare": "....x.......x...", "hat": "..X...X...X...X."},
    {"kick": "X..x..x...x..x..", "snare": "....X.......X..o", "hat": "x.xxx.x.x.xxx.x."},
    {"kick": "X.........x.....", "snare": "........X.......", "ride": "X.o.x.o.X.o.x.o."},
    {"kick": "X..x......x.....", "snare": "....X..o....X...", "shaker": "xoXoxoXoxoXoxoXo"},
)
LOUD = {"X": 1.0, "x": 0.75, "o": 0.35}
FILLS = ("........xxxxXXXX", "............xxXX", "....x.xx..x.XxXX", "..........x.XxxX")
RIFFS = (  # 0 root, 1 third, 2 fifth, 8 octave
    "0-----0-0---2---",
    "0-0-0-0-0-0-2-8-",
    "0--0--8---2-0---",
    "0---2---8---2---",
    "0-----2-0---1-2-",
    "0-8-0-8-0-8-2-8-",
)
STRUMS = (
    *("x-------x-------", "x--x--x---x--x--", "x---x---x---x---"),
    *("--x---x---x---x-", "x-x-x--x-xx-x---"),
)
MOTIFS = (
    *("x-x-x---x-x-x---", "x--x--x---x-x---", ".-x-x-x-x--x--x-"),
    *("x---x-x-x---x---", "x-xxx---x--x----"),
)
ANSWERS = ("x-x-x-------....", "x---x-x-----....", "x--x--------....", "x-----x-----....")
VOWELS = ("a", "e", "i", "o", "u")
CONSONANTS = ("", "", "s", "t", "k", "m", "n", "l", "f", "sh")
ENERGY = {"intro": 0.75, "verse": 0.8, "break": 0.6, "chorus": 1.0, "end": 0.9}


@dataclass(frozen=True)
class Style:
    """The patterns of a kind of section; `contour` has the melody's steps along the scale."""

    groove: dict[str, str]
    riff: str
    strum: str
    pace: int
    figure: list[int]
    motif: str
    contour: list[int]
    height: int


def write_song(plan: Plan, *, seconds: float = 24.0) -> Song:
    """Compose a planned song in as many bars as come closest to `seconds`, 4 at the least."""
    return _Arranger(plan).write(seconds)


def form(bars: int) -> list[str]:
    """The section of each of at least 4 bars; longer songs return to the chorus after a break."""
    if bars < 8:
        verse = (bars - 1) // 2
        return ["intro", *["verse"] * verse, *["chorus"] * (bars - 2 - verse), "end"]
    verse = (bars - 2) // 2
    first = (bars - 3 - verse) // 2
    second = bars - 3 - verse - first
    return ["intro", *["verse"] * verse, *["chorus"] * first, "break", *["chorus"] * second, "end"]


class _Arranger:
    """Carries key, clock and dice of one song from part to part."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = generator(*plan.seed, 1)
        self.step = 15 / plan.tempo
        self.swing = float(self.rng.choice([0.0, 0.0, 0.12, 0.28]))
        self.register = float(self.rng.uniform(54, 68))
        self.styles = {"verse": self._style(height=1), "chorus": self._style(height=4)}

    def write(self, seconds: float) -> Song:
        """Write all parts, bar by bar."""
        bars = self._bars(form(max(round(seconds / (STEPS * self.step)), 4)))
        ending = bars[-1].start + bars[-1].length + 0.5
        song = Song(self.plan, ending, self.register, bars)
        for bar in bars:
            style = self.styles["chorus" if bar.section == "chorus" else "verse"]
            song.drums.extend(self._drums(bar, style))
            song.bass.extend(self._bass(bar, style))
            song.strum.extend(self._strum(bar, style))
            song.pad.extend(self._pad(bar))
            song.arpeggio.extend(self._arpeggio(bar, style))
            song.melody.extend(self._sing(bar, style))
        return song

    def _draw(self, choices: tuple) -> Any:
        return choices[self.rng.integers(len(choices))]

    def _style(self, *, height: int) -> Style:
        return Style(
            groove=self._draw(GROOVES),
            riff=self._draw(RIFFS),
            strum=self._draw(STRUMS),
            pace=self._draw((1, 2, 2)),
            figure=self.rng.permutation(4).tolist(),
            motif=self._draw(MOTIFS),
            contour=self.rng.choice([-2, -1, -1, 0, 1, 1, 2], size=2 * STEPS).tolist(),
            height=height,
        )

    def _bars(self, sections: list[str]) -> list[Bar]:
        size, length, bars = int(self._draw((3, 4))), STEPS * self.step, []
        place = 0
        for number, section in enumerate(sections):
            place = place + 1 if number and section == sections[number - 1] else 0
            last = number + 1 == len(sections) or sections[number + 1] != section
            progression = self.plan.progressions["chorus" if section == "chorus" else "verse"]
            degree = 0 if section == "end" else int(progression[place % len(progression)])
            chord = self.plan.chord(degree, size)
            bars.append(Bar(number * length, length, section, place, last, chord))
        return bars

    def _at(self, bar: Bar, step: int) -> float:
        """Seconds of a step; every second sixteenth is late by the swing."""
        return bar.start + (step + self.swing * (step % 2)) * self.step

    def _played(self, bar: Bar, step: int) -> float:
        """The same, as people play: a few milliseconds off."""
        return max(self._at(bar, step) + float(np.clip(self.rng.normal(0, 0.004), -0.01, 0.01)), 0)

    def _velocity(self, bar: Bar, softest: float = 0.8) -> float:
        return ENERGY[bar.section] * float(self.rng.uniform(softest, 1))

    def _rhythm(self, bar: Bar, pattern: str) -> list[tuple[int, str, float]]:
        """Step, character and length in seconds of a pattern's notes; '-' holds, '.' rests."""
        steps = [step for step, mark in enumerate(pattern) if mark not in "-."]
        rests = [step for step, mark in enumerate(pattern) if mark == "."]
        ends = [min(s for s in (*steps, *rests, STEPS) if s > step) for step in steps]
        return [
            (step, pattern[step], self._at(bar, end) - self._at(bar, step))
            for step, end in zip(steps, ends, strict=True)
        ]

    def _voicing(self, bar: Bar, centre: int) -> list[int]:
        """The chord within a tritone of `centre`, so that neighbours keep their common tones."""
        return sorted(tone + 12 * round((centre - tone) / 12) for tone in bar.chord)

    def _drums(self, bar: Bar, style: Style) -> list[Hit]:
        strokes = self._strokes(bar, style)
        return [
            Hit(self._played(bar, step), piece, LOUD[mark] * self._velocity(bar, 0.85))
            for piece, row in strokes.items()
            for step, mark in enumerate(row)
            if mark != "."
        ]

    def _strokes(self, bar: Bar, style: Style) -> dict[str, str]:
        """The pattern of every piece in a bar, with what marks the joints of the form."""
        if bar.section == "end":
            return {"kick": "X", "crash": "X"}
        if bar.section == "break":
            return {"kick": "X.......x.......", "hat": "x.o.x.o.x.o.xoxo"}
        strokes: dict[str, str] = dict(style.groove)
        if bar.section == "chorus" and not bar.place:
            strokes["crash"] = "X"
        if not bar.last:
            return strokes
        fill = self._draw(FILLS)
        opening = fill.index("x")
        strokes = {piece: row[:opening] for piece, row in strokes.items()}
        for number, piece in enumerate(("snare", "high tom", "low tom")):
            taken = "".join(m if step // 2 % 3 == number else "." for step, m in enumerate(fill))
            strokes[piece] = (strokes.get(piece) or "." * opening) + taken[opening:]
        return strokes

    def _bass(self, bar: Bar, style: Style) -> list[Note]:
        root, third, fifth = bar.chord[:3]
        lowest = 28 + (root - 28) % 12  # the open E string and the octave above
        above = {"0": 0, "1": third - root, "2": fifth - root, "8": 12}
        riff = "0---------------" if bar.section in ("break", "end") else style.riff
        return [
            Note(self._played(bar, step), 0.9 * length, lowest + above[mark], self._velocity(bar))
            for step, mark, length in self._rhythm(bar, riff)
        ]

    def _strum(self, bar: Bar, style: Style) -> list[Note]:
        pattern = "x---------------" if bar.section in ("break", "end") else style.strum
        notes = []
        for step, _, length in self._rhythm(bar, pattern):
            start, velocity = self._at(bar, step), self._velocity(bar, 0.7)
            for string, pitch in enumerate(self._voicing(bar, 57)):
                notes.append(Note(start + 0.012 * string, 0.9 * length, pitch, velocity))
        return notes

    def _pad(self, bar: Bar) -> list[Note]:
        velocity = ENERGY[bar.section]
        return [Note(bar.start, bar.length, pitch, velocity) for pitch in self._voicing(bar, 63)]

    def _arpeggio(self, bar: Bar, style: Style) -> list[Note]:
        if bar.section in ("verse", "end"):
            return []
        voicing = self._voicing(bar, 72)
        pitches = [voicing[string % len(voicing)] for string in style.figure]
        return [
            Note(self._at(bar, step), 2 * self.step, pitches[n % 4], self._velocity(bar, 0.5))
            for n, step in enumerate(range(0, STEPS, style.pace))
        ]

    def _sing(self, bar: Bar, style: Style) -> list[Syllable]:
        """A motif, or its answer; on long notes and strong beats it settles on a chord tone."""
        if bar.section in ("intro", "break"):
            return []
        answers = bar.place % 2 == 1 or bar.last
        rhythm = self._draw(ANSWERS) if answers else style.motif
        rhythm = "x-----------...." if bar.section == "end" else rhythm
        contour = style.contour[STEPS * answers :]
        degree, syllables = style.height, []
        for move, (step, _, length) in zip(contour, self._rhythm(bar, rhythm), strict=False):
            degree = int(np.clip(degree + move, -4, 7))
            settles = step % 8 == 0 or length > 3.5 * self.step
            syllables.append(
                Syllable(
                    start=self._played(bar, step),
                    length=length,
                    pitch=self._sung(degree, bar.chord[:3] if settles else self.plan.scale),
                    velocity=self._velocity(bar),
                    vowel=self._draw(VOWELS),
                    consonant=self._draw(CONSONANTS),
                )
            )
        return syllables

    def _sung(self, degree: int, tones: tuple[int, ...]) -> int:
        """The nearest of `tones`, in any octave, to `degree` steps above the singer's register."""
        wanted = self.register + degree * 12 / 7
        classes = [tone % 12 for tone in tones]
        pitches = [p for p in range(int(wanted) - 6, int(wanted) + 8) if p % 12 in classes]
        return min(pitches, key=lambda pitch: abs(pitch - wanted))
