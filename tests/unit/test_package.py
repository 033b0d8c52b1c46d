"""The package as users import it."""

import importlib.metadata
import importlib.resources
import re
import subprocess
import sys

import pytest

import aioabort


def test_public_names_are_sorted_and_exist() -> None:
    """``__all__`` is the public API, and nothing else is."""
    assert aioabort.__all__ == sorted(aioabort.__all__)
    assert all(hasattr(aioabort, name) for name in aioabort.__all__)


def test_version_is_that_of_the_installed_package() -> None:
    """``__version__`` is read from the metadata when a user asks for it."""
    assert "__version__" not in vars(aioabort)
    assert aioabort.__version__ == importlib.metadata.version("aioabort")


def test_misspelt_name_is_an_attribute_error() -> None:
    """The function that returns the version returns nothing else."""
    with pytest.raises(AttributeError, match="'aioabort' has no attribute 'verson'"):
        _ = aioabort.verson  # type: ignore[attr-defined]


def test_run_time_needs_three_packages() -> None:
    """Celery, asyncpg and anyio: the rest is for the demo."""
    requires = importlib.metadata.requires("aioabort") or []
    needed = {r.split(">")[0] for r in requires if "extra" not in r}
    assert needed == {"anyio", "asyncpg", "celery"}


def test_description_has_no_link_into_the_repository() -> None:
    """A package index shows the README, but none of the files that it links to."""
    description = importlib.metadata.metadata("aioabort").get_payload()

    assert isinstance(description, str)
    assert description.startswith("# aioabort\n")
    assert "pip install aioabort" in description
    assert re.findall(r"\]\((?!https?:)[^)]*\)", description) == []


def test_what_is_no_code_is_packaged() -> None:
    """Types are announced, and the schema, the demo's page and templates can be read."""
    files = importlib.resources.files("aioabort")
    assert files.joinpath("py.typed").is_file()
    assert "CREATE TABLE" in files.joinpath("postgres", "sql/schema.sql").read_text()
    template = files.joinpath("django", "templates/admin/aioabort")
    assert template.joinpath("abort_confirmation.html").is_file()
    assert files.joinpath("django", "migrations/0001_initial.py").is_file()
    for name in ("index.html", "page.css", "page.js", "icon.svg"):
        assert files.joinpath("demo", "page", "static", name).is_file()


def test_import_starts_nothing() -> None:
    """Importing connects to nothing and starts no thread: a worker forks after it."""
    code = (
        "import sys, threading, aioabort;"
        "print(threading.active_count(), 'sqlalchemy' in sys.modules)"
    )
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert output.split() == ["1", "False"]


def test_import_connects_only_what_sees_tasks_run() -> None:
    """A process that is no worker has no hook of ours at its end, nor a worker's class."""
    code = (
        "import sys, aioabort; from celery import signals;"
        "print(*(n for n, s in vars(signals).items() if getattr(s, 'receivers', ())),"
        "'celery.worker.request' in sys.modules)"
    )
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    *connected, has_request = output.split()
    tasks = ["task_internal_error", "task_postrun", "task_prerun"]
    # A worker sends them when it starts and when it shuts down.
    worker = ["worker_init", "worker_shutting_down"]
    # Notes the time of each publication.
    assert sorted(connected) == ["before_task_publish", *tasks, *worker]
    assert has_request == "False"
