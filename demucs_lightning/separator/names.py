"""What files of stems are called: a template, filled in so that no name leaves its folder."""

import re
import string
from collections.abc import Mapping
from pathlib import Path

from demucs_lightning.audio import Tags
from demucs_lightning.audio.encoding import format_of

TEMPLATE = "{track}/{stem}.{ext}"
STEM_FILE = "stem.mp4"
FIELDS = ("track", "trackext", "stem", "ext", "title", "artist", "album")
FORBIDDEN = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f]')
LONGEST = 200  # bytes of a field: a name has 255 at most


def fields_of(template: str) -> list[str]:
    """The fields that a template names; ValueError for one that there is not."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"filename is {template!r}: {error}.") from None
    names = [name for _, name, _, _ in parsed if name is not None]
    plain = all(not spec and not conversion for _, _, spec, conversion in parsed)
    if unknown := [name for name in names if name not in FIELDS]:
        listed = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise ValueError(f"filename has {{{unknown[0]}}}: it may have {listed}.")
    if not plain:
        raise ValueError(f"filename is {template!r}: its fields are plain, such as {{track}}.")
    return names


def template_for(template: str | None, form: str, stems: int) -> str:
    """The template, or the one that suits the format; ValueError if it gives all stems one name."""
    if template is None:
        return "{track}.{ext}" if form == STEM_FILE else TEMPLATE
    if "stem" not in fields_of(template) and form != STEM_FILE and stems > 1:
        raise ValueError(f"filename is {template!r}: without {{stem}} all stems have one name.")
    return template


def check_template(template: str, form: str) -> None:
    """Raise ValueError for what would be wrong with the names of all tracks."""
    name = filled(Path(), template, {**dict.fromkeys(FIELDS, "x"), "ext": form})
    if template.endswith(".{trackext}"):  # which each track's turn will tell
        return
    try:
        fits = format_of(name) is format_of(f"x.{form}")
    except ValueError:  # no ending, or an unknown one
        fits = False
    if not fits:
        raise ValueError(
            f"filename is {template!r}, and the format is {form}: let it end in .{{ext}}."
        )


def values_of(path: Path, tags: Tags) -> dict[str, str]:
    """The fields that a track has."""
    if path.name.lower().endswith(f".{STEM_FILE}"):
        at = len(path.name) - len(STEM_FILE) - 1
    else:
        at = path.name.rfind(".")
    track, extension = (path.name[:at], path.name[at + 1 :]) if at >= 0 else (path.name, "")
    return {
        "track": track,
        "trackext": extension,
        "title": tags.title or track,
        "artist": tags.artist or tags.album_artist or "unknown artist",
        "album": tags.album or "unknown album",
    }


def filled(folder: Path, template: str, values: Mapping[str, str]) -> Path:
    """The path of a file below ``folder``; ValueError where the template itself leads out of it."""
    parts = Path(template).parts
    if Path(template).is_absolute() or ".." in parts or not parts:
        raise ValueError(f"filename is {template!r}: it must stay in the output folder.")
    return folder / template.format_map({key: safe(text) for key, text in values.items()})


def safe(text: str) -> str:
    """A text as the name of a file or folder, or a part of one: any Unicode, but no separators, no
    hidden file and no way up."""
    text = FORBIDDEN.sub("_", text).strip()
    text = re.sub(r"^\.+", lambda dots: "_" * len(dots[0]), text).rstrip(". ")
    while len(text.encode("utf-8", "surrogateescape")) > LONGEST:
        text = text[:-1]
    return text or "_"
