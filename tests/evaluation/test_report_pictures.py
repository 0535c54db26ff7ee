"""Charts at known places, pictures that decode to known levels, and numbers as they are written."""

import io
import math
import re

import matplotlib
import matplotlib.image
import numpy as np
import pytest
import torch

from demucs_lightning.evaluation.report import charts, spectrograms
from demucs_lightning.evaluation.report.markup import Markup, element, json_script, markup
from demucs_lightning.evaluation.report.numbers import Axis, axis, box, clock, time_axis, written
from demucs_lightning.evaluation.results import Results
from tests.evaluation.made import constant, settings, tone, track

# Quartiles 2, 3 and 4; 20 is out of reach of the whisker, which ends at 5.
VALUES = (1.0, 2.0, 3.0, 4.0, 20.0)


def results_of(values, tmp_path) -> Results:
    tracks = [track(f"T{n}", {"bass": constant(value)}) for n, value in enumerate(values)]
    return Results(tmp_path, settings("m", sources=["bass"]), tracks)


def test_a_box_holds_the_middle_half():
    found = box([*VALUES, math.nan, math.inf])
    assert found is not None
    assert (found.low, found.first, found.median, found.third, found.high) == (1, 2, 3, 4, 4)
    assert box([math.nan, -math.inf]) is None
    lone = box([7.0])
    assert lone is not None
    assert {lone.low, lone.first, lone.median, lone.third, lone.high} == {7.0}


def test_a_known_box_is_drawn_at_known_places(tmp_path):
    svg = charts.box_plot([results_of(VALUES, tmp_path)], "nsdr")
    assert svg is not None
    # The axis ends 4 interquartile ranges beyond the quartiles: from 0 to 12; percent within 2..98.
    ticks = re.findall(r'<text x="([\d.]+)%" y="\d+(?:\.\d)?">(.*?)</text>', svg)
    assert [text for _, text in ticks] == ["0", "2", "4", "6", "8", "10", "12"]
    assert [float(x) for x, _ in ticks] == [2, 18, 34, 50, 66, 82, 98]
    (rect,) = re.findall(r'<rect x="([\d.]+)%" y="([\d.]+)" width="([\d.]+)%" height="(\d+)"', svg)
    top = charts.LABEL + charts.LANE / 2 - charts.BOX / 2
    assert tuple(map(float, rect)) == (18, top, 16, charts.BOX)
    (median,) = re.findall(r'<line x1="([\d.]+)%" x2="([\d.]+)%"[^>]*class="median"', svg)
    assert median == ("26.000", "26.000")
    whiskers = re.findall(r'<line x1="([\d.]+)%" x2="([\d.]+)%"[^>]*class="whisker"', svg)
    assert whiskers == [("10.000", "18.000"), ("34.000", "34.000")]
    points = re.findall(r'<circle cx="([\d.]+)%" cy="[\d.]+" r="3"( class="beyond")?', svg)
    places = [("10.000", False), ("18.000", False), ("26.000", False), ("34.000", False)]
    assert [(x, bool(beyond)) for x, beyond in points] == [*places, ("98.000", True)]
    assert "<title>T4: 20.00 dB</title>" in svg
    assert "median 3.00 dB" in svg


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((0.0, 10.0), (0, 2, 4, 6, 8, 10)),
        ((-0.2, 0.1), (-1.0, -0.5, 0, 0.5, 1.0)),
        ((7.0,), (6.4, 6.6, 6.8, 7.0, 7.2, 7.4, 7.6)),
        ((), (-0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6)),
        ((math.nan, math.inf, 3e4, -3e4), (-30000, -20000, -10000, 0, 10000, 20000, 30000)),
    ],
)
def test_an_axis_has_round_ticks_around_all(values, ticks):
    found = axis(values)
    assert found.ticks == pytest.approx(ticks)
    assert (found.low, found.high) == (found.ticks[0], found.ticks[-1])


def test_beyond_an_axis_is_its_end():
    scale = Axis(-10.0, 30.0, ())
    places = [scale.place(v) for v in (-math.inf, -10.0, 0.0, 30.0, math.inf)]
    assert places == [0, 0, 25, 100, 100]


def test_times_are_minutes():
    assert time_axis(61.0).ticks == (0, 10, 20, 30, 40, 50, 60)
    assert time_axis(0.4).ticks == (0,)
    assert len(time_axis(40000.0).ticks) == 6
    assert [clock(s) for s in (0, 59.9, 61, 3600)] == ["0:00", "0:59", "1:01", "60:00"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.005, "1.00"), (-1.5, "−1.50"), (-0.004, "0.00"), (0.0, "0.00"), (-math.inf, "−∞")],
)
def test_numbers_are_written_to_be_read(value, text):
    assert written(value) == text


def test_markup_escapes_all_that_is_not_markup():
    inner = element("b", "<i>", title='"&')
    assert inner == '<b title="&quot;&amp;">&lt;i&gt;</b>'
    assert element("p", inner, None, "a & b", data_x=None, hidden=True) == (
        f"<p hidden>{inner}a &amp; b</p>"
    )
    assert isinstance(markup("x"), Markup)
    assert "<" not in json_script({"k": "</script><!--"}).removeprefix(
        '<script type="application/json">'
    ).removesuffix("</script>")


def decoded(png: bytes) -> np.ndarray:
    """RGB of another decoder, 0 to 1."""
    return matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3]


def shade(level: float) -> np.ndarray:
    return np.asarray(matplotlib.colormaps["magma"](level)[:3])


def test_a_tone_is_one_bright_line_at_its_frequency():
    (png,) = spectrograms.pictures([tone(3.0, 1000)], 44100)
    picture = decoded(png)
    assert picture.shape[0] == spectrograms.HEIGHT
    assert picture.shape[1] <= spectrograms.WIDTH
    bright = picture.sum(2).argmax(0)
    (place,) = (place for name, place in spectrograms.frequencies(44100) if name == "1k")
    assert abs(bright - place / 100 * (spectrograms.HEIGHT - 1)).max() <= 1
    assert np.allclose(picture[bright[0], 5], shade(1.0), atol=0.01)
    assert np.allclose(picture[5], shade(0.0), atol=0.01)  # 80 dB and more below


def test_pictures_share_one_scale_of_colours():
    loud = tone(1.0, 500)
    pictures = spectrograms.pictures([loud, loud / 100, loud - loud], 44100)
    peaks = [decoded(png).reshape(-1, 3).sum(1).max() for png in pictures]
    # 40 dB below is half of 80.
    expected = [shade(1.0).sum(), shade(0.5).sum(), shade(0.0).sum()]
    np.testing.assert_allclose(peaks, expected, atol=0.05)


def test_levels_are_those_of_the_sound():
    # A sine of amplitude 1/2 has 1/4 at its frequency and at the negative one; it may lie between
    # the bins of the window.
    found = spectrograms.levels(tone(2.0, 100), 44100)
    assert float(found.max()) == pytest.approx(20 * math.log10(0.25), abs=1.6)


@pytest.mark.parametrize(("samplerate", "seconds"), [(8000, 1.0), (44100, 0.01), (192000, 0.5)])
def test_any_rate_and_length_has_a_picture(samplerate, seconds):
    sound = tone(seconds, 440, samplerate=samplerate)
    (png,) = spectrograms.pictures([sound], samplerate)
    assert decoded(png).shape[0] == spectrograms.HEIGHT
    (silent,) = spectrograms.pictures([torch.zeros_like(sound)], samplerate)
    assert np.allclose(decoded(silent), shade(0.0), atol=0.01)
