"""The extras, the versions, and the three ways to name a PostgreSQL."""

import re
import tomllib
from typing import Any

import pytest

from .pages import PAGES, ROOT
from .reader import Reader

PAGE = "docs/installation.md"


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """What pyproject.toml says of the package."""
    toml = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found: dict[str, Any] = toml["project"]
    return found


def row(name: str) -> str:
    """Return the cell beside *name*."""
    [cell] = re.findall(
        rf"^\| {re.escape(name)} \| (.*?) \|", PAGES[PAGE].read_text(), re.MULTILINE
    )
    return str(cell)


def name_of(requirement: str) -> str:
    """Return the package that is required."""
    name = re.match(r"[\w-]+", requirement)
    assert name
    return name[0]


def test_extras(project: dict[str, Any]) -> None:
    """The table has each extra, with all that it brings."""
    extras = project["optional-dependencies"]
    shown = re.findall(r"^\| `(\w+)` \|", PAGES[PAGE].read_text(), re.MULTILINE)

    assert shown == sorted(extras)
    for extra, requirements in extras.items():
        assert row(f"`{extra}`").split(", ") == sorted(map(name_of, requirements))


def test_versions(project: dict[str, Any]) -> None:
    """The table has the versions that the package declares and that are tested."""
    pythons = [
        classifier.rpartition(" ")[2]
        for classifier in project["classifiers"]
        if re.search(r":: 3\.\d+$", classifier)
    ]
    matrix = re.findall(r'"celery[>=]=(\d\.\d)', (ROOT / "noxfile.py").read_text())

    assert row("Python").split(", ") == pythons
    assert row("Celery").split(", ") == sorted(set(matrix))
    for requirement in project["dependencies"]:
        name, _, oldest = requirement.partition(">=")
        if name != "celery":
            assert row(name) == f"{oldest} and later"


def test_installation(reader: Reader) -> None:
    """With each of the ways, the doctor finds nothing wrong."""
    reader.replaced["//postgres@localhost/postgres"] = reader.dsn.partition(":")[2]
    # Otherwise it would win over what the page says.
    del reader.settings["result_backend"]
    for next_block in ("db+postgresql+psycopg", "app.conf.aioabort_dsn", "init-db"):
        reader.follow(until=next_block)
        assert "BAD" not in reader.run("celery -A proj aioabort doctor")
    reader.follow()
