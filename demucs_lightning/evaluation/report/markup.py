"""HTML from strings: text is escaped unless it says that it is markup.

Names of tracks, sources and models come from the files of strangers, so escaping is not left to
whoever writes a table: every child and every attribute of an `element` is text but for `Markup`.
"""

import json
from html import escape
from typing import Any

VOID = {"br", "hr", "img", "input", "meta"}


class Markup(str):
    """HTML as it is to stand in the page."""

    __slots__ = ()


def markup(*parts: object) -> Markup:
    """The parts one after the other, escaped unless they are `Markup`; None is nothing."""
    return Markup("".join(_text(part) for part in parts if part is not None))


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """``<name attribute="...">children</name>``.

    In names of attributes ``_`` stands for ``-``, one at the end for nothing (``class_``); True is
    an attribute without a value, None and False leave it out.
    """
    given = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{markup(*children)}</{name}>")


def json_script(value: Any, **attributes: object) -> Markup:
    """Data for the page's script, which nothing in it can end or turn into markup."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return element("script", Markup(text), type="application/json", **attributes)


def _text(part: object) -> str:
    return part if isinstance(part, Markup) else escape(str(part))


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
