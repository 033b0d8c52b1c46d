"""The reference and the glossary name what is there, also where no directive is run."""

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any, get_args

import pytest
from celery import Celery

import aioabort
from aioabort.models import AbortReceipt, Outcome
from aioabort.settings import read_settings

from .pages import PAGES

DIRECTIVE = re.compile(
    r"^\.\. auto(?:class|function|exception):: (\S+)\n((?:   .*\n)*)", re.MULTILINE
)


def split(page: str) -> tuple[str, str]:
    """Return the page's prose, and its directives."""
    fences = r"^```\{eval-rst\}\n(.*?)^```$"
    text = PAGES[page].read_text()
    directives = re.findall(fences, text, re.DOTALL | re.MULTILINE)
    return re.sub(fences, "", text, flags=re.DOTALL | re.MULTILINE), "".join(directives)


def option(options: str, name: str) -> set[str]:
    """Return the names that an option of a directive lists."""
    found = re.search(rf":{name}:((?:.|\n(?!   :))*)", options)
    return set(re.findall(r"\w+", found[1])) if found else set()


def members(directives: str) -> Iterator[str]:
    """Yield the names that Sphinx documents."""
    for path, options in DIRECTIVE.findall(directives):
        module, _, name = path.rpartition(".")
        yield name
        documented: Any = getattr(import_module(module), name)
        if ":members:" in options:
            yield from option(options, "members") or {
                member
                for member, value in vars(documented).items()
                if not member.startswith("_")
                and (inspect.isfunction(value) or isinstance(value, property))
            } - option(options, "exclude-members")


@pytest.mark.parametrize("name", ["api", "worker", "testing"])
def test_each_documented_name_is_in_the_prose(name: str) -> None:
    """On a code host, where directives are shown as they stand, no name is missing."""
    prose, directives = split(f"docs/reference/{name}.md")
    listed = set(re.findall(r"`(?:\w+\.)*(\w+)(?:\([^`]*)?`", prose))
    listed |= set(re.findall(r"^## (\w+)", prose, re.MULTILINE))

    assert set(members(directives)) - listed == set()


def test_each_public_name_is_in_the_reference() -> None:
    """Whatever can be imported from the package is in one of two tables."""
    prose = "".join(split(f"docs/reference/{name}.md")[0] for name in ("api", "worker"))

    missing = [
        name for name in aioabort.__all__ if not re.search(rf"\b{name}\b", prose)
    ]
    assert missing == []


def test_each_documented_setting_is_one() -> None:
    """A key that is not a setting raises ImproperlyConfigured."""
    page = PAGES["docs/reference/settings.md"].read_text()
    app = Celery("proj", backend="db+postgresql://localhost", set_as_current=False)
    app.conf.update(dict.fromkeys(re.findall(r"^\| `(\w+)`", page, re.MULTILINE)))

    assert read_settings(app).poll_interval == 1.0


def test_glossary_has_the_answers_and_the_outcomes() -> None:
    """Each word that a receipt or a request may carry is explained."""
    page = PAGES["docs/glossary.md"].read_text()
    _, _, rest = page.partition("## Receipts\n")
    receipts, _, outcomes = rest.partition("## Outcomes\n")
    answers = get_args(inspect.get_annotations(AbortReceipt)["answer"])

    assert re.findall(r"^\| `(\w+)`", receipts, re.MULTILINE) == list(answers)
    assert set(re.findall(r"^\| `(\w+)`", outcomes, re.MULTILINE)) == set(
        get_args(Outcome)
    )
