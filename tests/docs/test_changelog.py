"""The changelog: what is new, by version."""

import re
import tomllib

from .pages import ROOT


def test_changelog_has_the_version() -> None:
    """Unreleased changes come first, then the dated section of the present version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "CHANGELOG.md").read_text()
    unreleased, latest, *_ = re.findall(r"^## (.*)$", text, re.MULTILINE)

    assert unreleased == "Unreleased"
    version, _, date = latest.partition(" - ")
    assert version == project["version"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", date)
