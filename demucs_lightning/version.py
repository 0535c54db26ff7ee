"""The version of this package, which pyproject.toml alone names."""

import tomllib
from importlib import metadata
from pathlib import Path

NAME = "demucs-lightning"


def own_version() -> str | None:
    """Of the checkout that this file is in, or else of what was installed; None where the package
    was copied without either."""
    try:
        text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
        project = tomllib.loads(text).get("project", {})
    except (OSError, ValueError):
        project = {}
    if project.get("name") == NAME:  # below another project, an installed package may lie
        return project.get("version")
    try:
        return metadata.version(NAME)
    except metadata.PackageNotFoundError:
        return None
