"""The report in a real browser: it opens without a network, looks right, and plays in step."""

import io
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from demucs_lightning.evaluation.report import write_report
from demucs_lightning.evaluation.results import Results, read_results, write_track
from tests.evaluation.browser import PROGRAM, Browser, browser
from tests.evaluation.made import (
    SOURCES,
    constant,
    made,
    tone,
    track,
    with_excerpts,
    write_excerpt,
)
from tests.evaluation.test_report import HOSTILE

if PROGRAM is None:
    pytest.skip("no chromium on this machine: apt-get install chromium", allow_module_level=True)

PITCHES = (400.0, 500.0, 600.0, 700.0)  # of the references; estimates are an octave above
SECONDS = 1.5
PLAYER = "report.players[0]"


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    """Three tracks, the worst of tones that tell what is heard."""
    folder = tmp_path_factory.mktemp("results")
    results = made(folder, tracks=2)
    worst = track(f"Z {HOSTILE}", {name: constant(-30.0, windows=40) for name in SOURCES})
    write_track(folder, worst)
    results = read_results(folder)
    stems = torch.stack([tone(SECONDS, pitch) for pitch in PITCHES])
    estimates = torch.stack([tone(SECONDS, 2 * pitch) for pitch in PITCHES])
    write_excerpt(results, results.tracks[-1], stems / 4, estimates / 4)
    return with_excerpts(results, results.tracks[:1], seconds=1.0)


@pytest.fixture(scope="module")
def path(results: Results) -> Path:
    path = results.folder / "report.html"
    write_report(results, path)
    return path


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture
def page(chromium: Browser, path: Path) -> Browser:
    chromium.open(path)
    return chromium


def seen(page: Browser) -> np.ndarray:
    """A screenshot, RGB from 0 to 1."""
    return matplotlib.image.imread(io.BytesIO(page.screenshot()), format="png")[..., :3]


def pressed(page: Browser, action: str) -> None:
    page.run(f"{action}; 0")


def test_it_opens_without_faults_and_asks_for_nothing(page: Browser, path: Path):
    page.run("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    counts = page.run(
        "['table', 'svg.boxes', 'svg.curves', '.spectrogram', '.player', 'circle']"
        ".map((name) => document.querySelectorAll(name).length)"
    )
    assert counts == [8, 6, 3, 24, 2, 3 * 4 * 6]
    assert page.run("[...document.images].every((image) => image.naturalWidth > 0)")
    assert page.faults == []
    assert [url for url in page.requests if not url.startswith("data:")] == [path.as_uri()]
    assert page.run("typeof hacked") == "undefined"
    assert page.run(f"document.body.textContent.includes({HOSTILE!r})".replace("</", "<\\/"))


def test_the_policy_stops_any_other_script_and_request(page: Browser):
    page.run(
        "document.body.append(Object.assign(document.createElement('script'),"
        " { textContent: 'hacked = 1' }))"
    )
    assert page.run("typeof hacked") == "undefined"
    assert page.run("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'stopped')") == "stopped"
    assert any("Content Security Policy" in fault for fault in page.faults)
    assert not [url for url in page.requests if url.startswith("http")]


def test_light_and_dark_differ_and_are_readable(chromium: Browser, path: Path):
    found = {}
    for dark in (False, True):
        chromium.open(path, dark=dark)
        found[dark] = seen(chromium)
    light, dark = found[False], found[True]
    assert light.shape == (900, 1200, 3)
    assert light[5, 5].min() > 0.9
    assert dark[5, 5].max() < 0.2
    for picture, ground in ((light, light[5, 5]), (dark, dark[5, 5])):
        ink = np.abs(picture - ground).max(2)
        assert 0.01 < (ink > 0.5).mean() < 0.3  # text, and not all of it


@pytest.mark.parametrize("width", [320, 375, 1200])
def test_nothing_is_wider_than_the_screen(chromium: Browser, path: Path, width: int):
    chromium.open(path, width=width)
    chromium.run("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    assert chromium.run("document.documentElement.scrollWidth") <= width
    wide = "[...document.querySelectorAll('section, article, svg, .player *')].filter((part) =>"
    wide += f" part.getBoundingClientRect().right > {width} + 0.5).length"
    assert chromium.run(wide) == 0


def shown_column(page: Browser, column: int) -> list[str]:
    return page.run(
        "[...document.querySelector('[data-metric]:not([hidden]) tbody').rows]"
        f".map((row) => row.cells[{column}].textContent)"
    )


def test_a_click_sorts_and_another_turns_it_round(page: Browser, results: Results):
    assert page.run("[...document.querySelectorAll('[data-metric]:not([hidden])')].length") == 1
    assert shown_column(page, 0) == [each.track for each in results.tracks]
    button = "document.querySelectorAll('[data-metric]:not([hidden]) thead button')"
    pressed(page, f"{button}[2].click()")
    scores = sorted((each.score("bass", "nsdr") for each in results.tracks), reverse=True)
    falling = [f"{score:.2f}".replace("-", "−") for score in scores]
    assert shown_column(page, 2) == falling
    assert page.run(f"{button}[2].parentNode.getAttribute('aria-sort')") == "descending"
    pressed(page, f"{button}[2].click()")
    assert shown_column(page, 2) == falling[::-1]
    pressed(page, "document.querySelector('#metrics input[value=sdr]').click()")
    rising = sorted(each.score("bass", "sdr") for each in results.tracks)
    assert shown_column(page, 2) == [f"{score:.2f}".replace("-", "−") for score in rising]
    pressed(page, f"{button}[0].click()")
    assert shown_column(page, 0) == [each.track for each in results.tracks]


def test_a_point_tells_its_track(page: Browser, results: Results):
    name = results.tracks[-1].track
    point = f"points.find((each) => each.dataset.track === {name!r})".replace("</", "<\\/")
    pressed(page, f"{point}.dispatchEvent(new PointerEvent('pointerover', {{ bubbles: true }}))")
    assert page.run("tip.textContent") == f"{name}: −30.00 dB"
    assert page.run("document.querySelectorAll('circle.lit').length") == 4 * 6
    pressed(page, f"{point}.dispatchEvent(new PointerEvent('pointerout', {{ bubbles: true }}))")
    assert page.run("tip.hidden")


def test_the_pointer_reads_scores_over_time(page: Browser):
    page.run(
        "(() => { const chart = document.querySelector('.curves');"
        " const { left, top, width } = chart.getBoundingClientRect();"
        " chart.dispatchEvent(new PointerEvent('pointermove',"
        " { clientX: left + width * 10.5 / 60, clientY: top + 9 })); })()"
    )
    assert page.run("tip.textContent.split('\\n')") == [
        "0:10",
        *(f"{name}: −30.00" for name in SOURCES),
    ]


def test_arrow_keys_read_scores_over_time(page: Browser):
    pressed(page, "document.querySelector('.curves').focus()")
    for _ in range(3):
        page.press("ArrowRight", "ArrowRight")
    assert page.run("tip.textContent.split('\\n')") == [
        "0:02",
        *(f"{name}: −30.00" for name in SOURCES),
    ]
    cursor = "document.querySelector('.cursor')"
    assert page.run(f"[tip.hidden, {cursor}.getAttribute('visibility')]") == [False, "visible"]
    pressed(page, "document.activeElement.blur()")
    assert page.run(f"[tip.hidden, {cursor}.getAttribute('visibility')]") == [True, "hidden"]


def rendered(page: Browser, plan: str) -> list[float]:
    """What the deck of the first player gives in two seconds, left channel, sample by sample."""
    return page.run(
        f"(async () => {{ await {PLAYER}.load(); const deck = {PLAYER}.deck;"
        " const rate = report.context().sampleRate;"
        " const context = new OfflineAudioContext(2, 2 * rate, rate);"
        " const copy = new report.Deck(context, deck.buffers, deck.seconds, deck.lead);"
        f" {plan};"
        " return [...(await context.startRendering()).getChannelData(0)]; })()"
    )


def buffer(page: Browser, name: str) -> np.ndarray:
    script = f"[...{PLAYER}.deck.buffers.get('{name}').getChannelData(0)]"
    return np.asarray(page.run(script), dtype=np.float64)


def test_switching_keeps_the_place_to_the_sample(page: Browser):
    out = np.asarray(
        rendered(
            page,
            "copy.choose('reference0', 0, 0); copy.start(0, 0, false);"
            " copy.choose('estimate2', 0.5); copy.choose('mixture', 1.0)",
        )
    )
    rate = page.run("report.context().sampleRate")
    names = {name: buffer(page, name) for name in ("reference0", "estimate2", "mixture")}
    lengths = {len(each) for each in names.values()}
    assert lengths == {round(SECONDS * rate)}  # the browser leaves out what the encoder added
    parts = {"reference0": (0.0, 0.5), "estimate2": (0.55, 1.0), "mixture": (1.05, SECONDS)}
    for name, (start, end) in parts.items():
        part = slice(round(start * rate), round(end * rate))
        np.testing.assert_allclose(out[part], names[name][part], atol=2e-4)
    # No gap in between either: at every time one of the two sounds.
    switch = out[round(0.49 * rate) : round(0.56 * rate)]
    rms = np.sqrt(np.square(switch[: len(switch) // 140 * 140].reshape(-1, 140)).mean(1))
    assert rms.min() > 0.02


def test_a_loop_starts_again_where_it_began(page: Browser):
    out = np.asarray(rendered(page, "copy.choose('mixture', 0, 0); copy.start(0, 0.25, true)"))
    rate = page.run("report.context().sampleRate")
    sound = buffer(page, "mixture")
    length = round(SECONDS * rate)
    wanted = np.concatenate([sound[:length], sound[:length]])[round(0.25 * rate) :]
    np.testing.assert_allclose(out, wanted[: len(out)], atol=1e-3)


def test_what_a_decoder_keeps_of_the_encoder_is_not_heard(page: Browser):
    padded = (
        "const longer = new Map(); for (const [name, sound] of deck.buffers) {"
        " const kept = context.createBuffer(2, sound.length + 4000, rate);"
        " kept.copyToChannel(sound.getChannelData(0), 0, Math.round(deck.lead * rate));"
        " longer.set(name, kept); }"
        " const late = new report.Deck(context, longer, deck.seconds, deck.lead);"
        " late.choose('mixture', 0, 0); late.start(0, 0, true)"
    )
    out = np.asarray(rendered(page, padded))
    assert page.run(f"{PLAYER}.deck.lead") == pytest.approx(1105 / 44100)
    sound = buffer(page, "mixture")
    np.testing.assert_allclose(out, np.concatenate([sound, sound])[: len(out)], atol=1e-3)


def test_decoded_sound_is_that_of_the_excerpt(page: Browser):
    page.run(f"{PLAYER}.load()")
    rate = page.run("report.context().sampleRate")
    for number, pitch in enumerate(PITCHES):
        for kind, factor in (("reference", 1), ("estimate", 2)):
            sound = buffer(page, f"{kind}{number}")
            spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
            assert spectrum.argmax() * rate / len(sound) == pytest.approx(factor * pitch, abs=1)
            assert np.abs(sound).max() == pytest.approx(1 / 8, rel=0.1)


def test_playing_runs_on_through_switches_and_stops_at_the_end(page: Browser):
    pressed(page, f"{PLAYER}.part('play').click()")
    page.until(f"{PLAYER}.playing && report.context().state === 'running'")
    assert page.run(f"{PLAYER}.part('play').textContent") == "Pause"
    page.until(f"{PLAYER}.position() > 0.2")
    before = page.run(f"[{PLAYER}.started, {PLAYER}.deck.nodes.length]")
    assert before[1] == 9
    pressed(page, f"{PLAYER}.radios.find((each) => each.value === 'estimate1').click()")
    assert page.run(f"[{PLAYER}.started, {PLAYER}.deck.nodes.length]") == before
    page.until(f"{PLAYER}.deck.gains.get('estimate1').gain.value > 0.99")
    gains = page.run(f"[...{PLAYER}.deck.gains.values()].map((each) => each.gain.value)")
    assert sum(gains) == pytest.approx(1, abs=0.02)
    drift = (
        f"{PLAYER}.position() - {PLAYER}.offset - (report.context().currentTime - {PLAYER}.started)"
    )
    assert page.run(drift) == pytest.approx(0, abs=1e-9)
    page.until(f"!{PLAYER}.playing")
    assert page.run(f"[{PLAYER}.position(), {PLAYER}.part('play').textContent]") == [0, "Play"]


def test_one_plays_at_a_time_and_seeking_moves_it(page: Browser):
    pressed(page, "report.players[1].toggle()")
    page.until("report.players[1].playing")
    pressed(page, f"{PLAYER}.part('loop').click(); {PLAYER}.toggle()")
    page.until(f"{PLAYER}.playing")
    assert not page.run("report.players[1].playing")
    pressed(page, f"{PLAYER}.seek(1.4)")
    page.until(f"{PLAYER}.position() < 0.5")  # round the end
    assert page.run(f"{PLAYER}.playing")
    pressed(page, f"{PLAYER}.pause(); {PLAYER}.seek(0.75)")
    assert page.run(f"{PLAYER}.position()") == 0.75
    assert page.run(f"{PLAYER}.part('time').textContent") == "0.8 / 1.5 s"
    head = page.run(f"{PLAYER}.heads[0].getAttribute('x1')")
    assert head == "50%"
    assert page.faults == []


def test_the_keyboard_does_it_all(page: Browser):
    pressed(page, f"{PLAYER}.radios[0].focus()")
    page.press("ArrowRight", "ArrowRight")
    assert page.run(f"{PLAYER}.chosen") == "reference0"
    page.press(" ", "Space", text=" ")
    page.until(f"{PLAYER}.playing")
    page.press(" ", "Space", text=" ")
    page.until(f"!{PLAYER}.playing")
    pressed(page, f"{PLAYER}.part('play').focus()")
    page.press(" ", "Space", text=" ")
    page.until(f"{PLAYER}.playing")
    outline = page.run(f"getComputedStyle({PLAYER}.part('play')).outlineStyle")
    assert outline == "solid"
    pressed(page, f"{PLAYER}.pause()")
