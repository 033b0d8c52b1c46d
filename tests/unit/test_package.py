"""The package as users import it."""

import importlib.metadata
import importlib.resources
import subprocess
import sys

import aioabort


def test_public_names_are_sorted_and_exist() -> None:
    """``__all__`` is the public API, and nothing else is."""
    assert aioabort.__all__ == sorted(aioabort.__all__)
    assert all(hasattr(aioabort, name) for name in aioabort.__all__)


def test_run_time_needs_three_packages() -> None:
    """Celery, asyncpg and anyio: the rest is for the demo."""
    requires = importlib.metadata.requires("aioabort") or []
    needed = {r.split(">")[0] for r in requires if "extra" not in r}
    assert needed == {"anyio", "asyncpg", "celery"}


def test_what_is_no_code_is_packaged() -> None:
    """Types are announced, and the schema and the demo's page can be read."""
    files = importlib.resources.files("aioabort")
    assert files.joinpath("py.typed").is_file()
    assert "CREATE TABLE" in files.joinpath("postgres", "schema.sql").read_text()
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
