from pathlib import Path

import pytest

from demucs_lightning.audio import Tags
from demucs_lightning.separator.names import filled, safe, template_for, values_of

OUT = Path("out")


def name(path: str, template: str = "{track}/{stem}.{ext}", tags: Tags | None = None) -> str:
    values = values_of(Path(path), tags or Tags())
    return str(filled(OUT, template, {**values, "stem": "bass", "ext": "wav"}))


@pytest.mark.parametrize(
    ("path", "track"),
    [
        ("a/song.mp3", "song"),
        ("a.b.flac", "a.b"),
        ("no extension", "no extension"),
        ("song.stem.mp4", "song"),
        ("song.STEM.mp4", "song"),
        ("song.b.stem.mp4", "song.b"),
        (".stem.mp4", "_"),
        ("Мелодия ä 音🎵.wav", "Мелодия ä 音🎵"),
        ("{stem}.wav", "{stem}"),
        ("...wav", "__"),
        ("...rock.wav", "___rock"),
        (".hidden.wav", "_hidden"),
        ("dots....wav", "dots"),
        ("a:b|c?.wav", "a_b_c_"),
        ("\udcff.wav", "\udcff"),  # bytes that are no text
    ],
)
def test_tracks(path, track):
    assert name(path) == f"out/{track}/bass.wav"


def test_tags_stay_in_the_folder():
    tags = Tags(title="../../etc/passwd", artist="..", album="/root\0\n")
    found = name("x.wav", "{artist}/{album}/{title}-{stem}.{ext}", tags)
    assert found == "out/__/_root__/___.._etc_passwd-bass.wav"
    assert (
        name("x.wav", "{artist}/{album}/{title}.{ext}") == "out/unknown artist/unknown album/x.wav"
    )


def test_fields():
    assert name("x.mp3", "{track} {trackext} {stem}.{ext}") == "out/x mp3 bass.wav"


@pytest.mark.parametrize("template", ["/abs/{stem}", "../{stem}", "a/../../{stem}", ""])
def test_templates_that_lead_out(template):
    with pytest.raises(ValueError, match="must stay in the output folder"):
        name("x.wav", template)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{nope}{stem}", "has {nope}"),
        ("{stem", "filename is"),
        ("{stem!r}", "plain"),
        ("{stem:>9}", "plain"),
        ("{}{stem}", "has {}"),
        ("{stem.upper}", "has {stem.upper}"),
        ("{track}.{ext}", "one name"),
    ],
)
def test_templates_that_are_none(template, said):
    with pytest.raises(ValueError, match=said):
        template_for(template, "wav", 2)


def test_the_template_that_suits_a_format():
    assert template_for(None, "wav", 4) == "{track}/{stem}.{ext}"
    assert template_for(None, "stem.mp4", 4) == "{track}.{ext}"
    assert template_for("{track}.{ext}", "wav", 1) == "{track}.{ext}"


def test_names_are_not_too_long():
    long = safe("音" * 300)
    assert len(long.encode()) <= 200
    assert long == "音" * len(long)
