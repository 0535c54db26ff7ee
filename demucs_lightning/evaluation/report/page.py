"""The page around a report's tables and charts, with its style and script inside.

The page asks for nothing from anywhere: its content security policy allows this one script and
style, by their hashes, and pictures that are inside the page.
"""

import base64
import hashlib
from pathlib import Path
from string import Template

from demucs_lightning.evaluation.report.markup import Markup, element, markup


def page(title: str, body: Markup) -> str:
    """A complete HTML document."""
    style, script = _part("page.css"), _part("page.js")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    text = Template(_part("page.html")).substitute(
        policy=policy,
        title=markup(title),
        style=element("style", Markup(style)),
        body=body,
        script=element("script", Markup(script)),
    )
    # A name may hold what is no character, from a file system that has no encoding.
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
