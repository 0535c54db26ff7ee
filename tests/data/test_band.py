import numpy as np
import pytest

from demucs_lightning.data.band import instruments
from demucs_lightning.data.band.arranger import FILLS, GROOVES, form, write_song
from demucs_lightning.data.band.drums import PLACES, DrumKit
from demucs_lightning.data.band.instruments import SAMPLERATE, hertz, oscillator, play
from demucs_lightning.data.band.singer import CONSONANTS, Singer
from demucs_lightning.data.band.songwriter import Note, Syllable, generator, plan_songs
from demucs_lightning.data.band.studio import SOURCES, echo, perform

PLANS = plan_songs(16)
SONGS = [write_song(plan) for plan in PLANS]
PATCHES = [
    instruments.pluck,
    instruments.electric_piano,
    instruments.organ,
    instruments.pad,
    instruments.mallet,
    instruments.synth_bass,
    instruments.sub_bass,
    instruments.picked_bass,
]


@pytest.fixture(scope="module")
def short():
    """A song of five bars, and its stems in -1..1."""
    song = write_song(PLANS[1], seconds=10)
    return song, perform(song) / 2**15


def fundamental(audio, near):
    """The frequency of the highest autocorrelation within three semitones of `near` hertz."""
    spec = np.abs(np.fft.rfft(audio * np.hanning(len(audio)), 2 * len(audio))) ** 2
    correlation = np.fft.irfft(spec)
    lags = np.arange(int(SAMPLERATE / near / 1.19), int(SAMPLERATE / near * 1.19) + 2)
    best = lags[np.argmax(correlation[lags])]
    before, top, after = correlation[best - 1 : best + 2]
    return SAMPLERATE / (best + 0.5 * (before - after) / (before - 2 * top + after))


def semitones(frequency, reference):
    return 12 * np.log2(frequency / reference)


def test_no_two_songs_are_alike():
    for values in (
        [plan.title for plan in PLANS],
        [(plan.tonic, plan.mode) for plan in PLANS],
        [tuple(plan.progressions.values()) for plan in PLANS],
        [tuple(note.pitch - song.plan.tonic for note in song.melody) for song in SONGS],
    ):
        assert len(set(values)) == len(PLANS)
    assert np.diff(sorted(plan.tempo for plan in PLANS)).min() > 1
    assert {plan.mode for plan in PLANS} == {"major", "minor"}
    assert plan_songs(16, seed=1) != PLANS
    assert plan_songs(20)[:16] == PLANS


def test_parts_follow_the_harmony():
    for song in SONGS:
        for note in [*song.bass, *song.strum, *song.pad, *song.arpeggio]:
            bar = next(bar for bar in reversed(song.bars) if bar.start <= note.start + 0.02)
            assert note.pitch % 12 in {tone % 12 for tone in bar.chord}
        for bar in song.bars:
            downbeat = min(song.bass, key=lambda note: abs(note.start - bar.start))
            assert downbeat.start == pytest.approx(bar.start, abs=0.02)
            assert downbeat.pitch % 12 == bar.chord[0] % 12
            assert {tone % 12 for tone in bar.chord} <= set(song.plan.scale)


def test_melodies_are_singable():
    for song in SONGS:
        pitches = np.array([syllable.pitch for syllable in song.melody])
        assert {pitch % 12 for pitch in pitches} <= set(song.plan.scale)
        assert np.ptp(pitches) <= 24
        assert np.abs(np.diff(pitches)).max() <= 16
        assert len(set(pitches)) >= 4
        starts = np.array([syllable.start for syllable in song.melody])
        ends = starts + [syllable.length for syllable in song.melody]
        assert (starts[1:] - ends[:-1]).max() > 0.3  # a rest to breathe in
        assert 0.5 < sum(syllable.length for syllable in song.melody) / song.seconds < 0.9


def test_songs_last_as_long_as_asked():
    for plan in PLANS:
        bar = 240 / plan.tempo
        for seconds in (11, 24, 60):
            song = write_song(plan, seconds=seconds)
            assert abs(song.seconds - 0.5 - seconds) <= bar / 2 + 1e-9
            assert song.bars[-1].section == "end"


def test_form():
    assert form(4) == ["intro", "verse", "chorus", "end"]
    for bars in range(4, 40):
        assert len(form(bars)) == bars
        assert ("break" in form(bars)) == (bars >= 8)


def test_patterns_fill_a_bar():
    assert {len(row) for groove in GROOVES for row in groove.values()} | set(map(len, FILLS)) == {
        16
    }
    assert {piece for groove in GROOVES for piece in groove} <= set(PLACES)


def test_oscillator_is_the_series_of_its_harmonics():
    phase = np.linspace(0, 20, 1000)
    series = sum(0.8**k * np.sin(k * phase) for k in range(1, 100))
    np.testing.assert_allclose(oscillator(phase, 0.8), series * (1 - 0.8**2) / 0.8, atol=1e-4)
    assert np.abs(oscillator(np.linspace(0, 7, 100000), 0.8)).max() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.__name__)
@pytest.mark.parametrize("pitch", [33, 57, 72])
def test_instruments_are_in_tune(patch, pitch):
    note = np.atleast_2d(patch(generator(3))(hertz(pitch), 1.0))[0][4410:]
    cents = 100 * semitones(fundamental(note, hertz(pitch)), hertz(pitch))
    assert abs(cents) < 12
    assert 0.05 < np.abs(note).max() < 2


def test_notes_are_placed_at_their_time_and_side():
    click = lambda frequency, seconds: np.ones(10, np.float32)  # noqa: E731
    notes = [Note(0.5, 1, 60, velocity=0.5), Note(0.9999, 1, 60)]
    stage = play(click, notes, SAMPLERATE, pan=1)
    assert (stage[0] == 0).all()
    np.testing.assert_array_equal(np.flatnonzero(stage[1])[:10], np.arange(22050, 22060))
    assert stage[1, 22050] == 0.5
    assert stage[1].sum() == 5 + SAMPLERATE - round(0.9999 * SAMPLERATE)


def test_drum_kits_differ_in_sound_but_not_in_pieces():
    first, second = DrumKit(generator(1)), DrumKit(generator(2))
    assert set(first.takes) == set(second.takes) == set(PLACES)
    for piece, (take, other) in first.takes.items():
        assert not np.array_equal(take, other)
        assert len(take) != len(second.takes[piece][0]) or not np.array_equal(
            take, second.takes[piece][0]
        )
        assert 0.05 < np.abs(take).max() < 2
        assert np.abs(take[-100:]).max() < 0.02 * np.abs(take).max()


@pytest.mark.parametrize("register", [50, 60, 70])
def test_singers_hit_their_notes(register):
    melody = [
        Syllable(0.2 + k, 0.9, register + step, 1.0, vowel, consonant)
        for k, (step, vowel, consonant) in enumerate([(0, "a", ""), (7, "i", "s"), (-3, "u", "m")])
    ]
    voice = Singer(generator(5), register).sing(melody, 4 * SAMPLERATE)
    assert np.abs(voice[: SAMPLERATE // 8]).max() < 0.01 * np.abs(voice).max()
    for syllable in melody:
        middle = round((syllable.start + 0.45) * SAMPLERATE)
        sung = voice[middle - 8820 : middle + 8820]
        assert abs(semitones(fundamental(sung, hertz(syllable.pitch)), hertz(syllable.pitch))) < 0.5


def test_consonants_are_noise_and_vowels_are_not():
    quiet = {name for name, (seconds, *_) in CONSONANTS.items() if not seconds}
    assert quiet == {""}
    sung = Singer(generator(5), 60).sing([Syllable(0.2, 0.8, 60, 1.0, "o", "s")], SAMPLERATE)
    spec = np.abs(np.fft.rfft(sung[8820:12000])), np.abs(np.fft.rfft(sung[20000:23180]))
    treble = [(s[450:] ** 2).sum() / (s**2).sum() for s in spec]  # above 6.2 kHz
    assert treble[0] > 0.5
    assert treble[1] < 0.01


def test_echoes_bounce():
    dry = np.zeros((2, 44100), np.float32)
    dry[0, 0] = 1
    wet = echo(dry, 0.25, feedback=0.5)
    np.testing.assert_array_equal(np.argwhere(wet), [[0, 0], [0, 22050], [1, 11025], [1, 33075]])
    assert wet[1, 11025] == 0.5


def test_stems_are_balanced_and_stereo(short):
    _, stems = short
    mixture = stems.sum(0)
    assert np.abs(mixture).max() == pytest.approx(0.9, abs=1e-3)
    for name, stem in zip(SOURCES, stems, strict=True):
        level = 10 * np.log10((stem**2).sum() / (mixture**2).sum())
        assert -9 < level < -3, name
        assert not np.array_equal(stem[0], stem[1]), name
        assert (stem.mean(0) ** 2).mean() > 0.5 * (stem**2).mean(), name  # survives mono
        pieces = stem[:, : stem.shape[1] // 22050 * 22050].reshape(2, -1, 22050)
        active = (pieces**2).mean((0, 2)) > 1e-3 * (stem**2).mean()
        assert active.mean() > 0.6, name


def test_drums_keep_the_beat(short):
    song, stems = short
    frames = np.abs(stems[0]).sum(0)[: stems.shape[2] // 441 * 441].reshape(-1, 441).sum(1)  # 10 ms
    onsets = np.maximum(np.diff(np.log(frames + 0.1)), 0)
    onsets -= onsets.mean()
    similarity = np.correlate(onsets, onsets, "full")[len(onsets) - 1 :]
    beat = 6000 / song.plan.tempo
    around = np.arange(round(0.8 * beat), round(1.2 * beat) + 1)
    assert abs(around[np.argmax(similarity[around])] - beat) <= 1.5


def test_vocals_follow_the_melody(short):
    song, stems = short
    long = [syllable for syllable in song.melody if syllable.length > 0.35]
    assert long
    for syllable in long:
        first = round((syllable.start + 0.15) * SAMPLERATE)
        sung = stems[3].mean(0)[first : first + round((syllable.length - 0.15) * SAMPLERATE)]
        assert abs(semitones(fundamental(sung, hertz(syllable.pitch)), hertz(syllable.pitch))) < 1


def test_perform_is_a_pure_function_of_the_song(short):
    song, stems = short
    assert np.array_equal(perform(song), (stems * 2**15).astype(np.int16))
