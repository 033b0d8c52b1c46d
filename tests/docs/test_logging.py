"""The loggers, the lines of the code, and what a worker logs."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.databases import celery_url

from .pages import PAGES, ROOT
from .reader import Reader

PAGE = "docs/how-to/logging.md"

PLAIN = """
from celery import Celery
import aioabort

app = Celery("proj")

@app.task
def index():
    pass
"""

MISSPELT = """
from celery import Celery
from aioabort import AbortableTask

app = Celery("proj")
app.conf.aioabort_pol_interval = 1

@app.task(base=AbortableTask)
def index():
    pass
"""


def logged() -> Iterator[tuple[str, str]]:
    """Yield the level and the template of each line that the code may log."""
    for path in ROOT.glob("aioabort/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="logger"), attr=name),
                    args=[ast.Constant(value=str(template)), *_],
                ):
                    level = "error" if name == "exception" else name
                    yield level.upper(), template


def loggers() -> set[str]:
    """Return the names of all modules that have a logger."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in ROOT.glob("aioabort/**/*.py")
        if "logging.getLogger(__name__)" in path.read_text()
    }


def lines() -> list[tuple[str, str]]:
    """Return the levels and the lines that the page explains."""
    return re.findall(
        r"^\| ([A-Z]+) \| `(.*?)` \|", PAGES[PAGE].read_text(), re.MULTILINE
    )


@pytest.mark.parametrize(("level", "line"), lines())
def test_lines_are_those_of_the_code(level: str, line: str) -> None:
    """Each has the words and the level that the code logs."""
    templates = [
        re.sub(r"%[sdg]", "|", template) for each, template in logged() if each == level
    ]

    assert any(
        re.fullmatch(".*".join(map(re.escape, template.split("|"))), line)
        for template in templates
        # One that has no words of its own would fit everything.
        if len(template.replace("|", "")) > len("aioabort.web: ")
    )


def test_names_of_loggers() -> None:
    """Each logger of the page is one of the code's, or has some below it."""
    names = re.findall(
        r"^\| `(aioabort[.\w]*)` \|", PAGES[PAGE].read_text(), re.MULTILINE
    )

    assert len(names) == 6
    for name in names:
        assert any(f"{module}.".startswith(f"{name}.") for module in loggers()), name


def test_logging(reader: Reader) -> None:
    """The worker logs what the page shows, in JSON, too."""
    reader.settings["result_backend"] = reader.dsn.replace(
        "postgresql", "aioabort+postgresql", 1
    )
    reader.follow(until="quieten")
    reader.follow(until="web.py")
    assert "aioabort worker" not in (reader.folder / "worker.log").read_text()
    reader.follow(until="logs.py")
    reader.run("python web.py")
    reader.follow()
    log = (reader.folder / "worker.log").read_text()
    assert re.findall(r"^.*aioabort worker: ", log, re.MULTILINE)
    assert not re.findall(r"^[^{].*aioabort worker: ", log, re.MULTILINE)


@pytest.mark.parametrize(
    ("project", "said"),
    [
        (PLAIN, None),
        (MISSPELT, "tasks run, but cannot be aborted: aioabort has no setting"),
    ],
)
def test_start_of_a_worker(
    tmp_path: Path,
    empty_dsn: str,
    project: str,
    said: str | None,
) -> None:
    """A wrong setting is logged before any task runs; without abortable tasks, nothing."""
    reader = Reader(PAGE, tmp_path, empty_dsn, celery_url(empty_dsn))
    reader.give("proj.py", project)
    reader.start_worker()
    log = reader.stop_worker()

    assert log.count("aioabort worker: ") == bool(said)
    assert (said or "") in log
