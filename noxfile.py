"""What is run to check aioabort; every session installs what it needs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
# An interpreter that is missing is reported, not fetched.
nox.options.download_python = "never"
nox.options.error_on_external_run = True
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "typing", "docs", "tests"]

# As pip does: where Python writes no bytecode, each worker of the tests would compile all
# of its packages.
os.environ.setdefault("UV_COMPILE_BYTECODE", "1")

PROJECT = nox.project.load_toml("pyproject.toml")
# Old with old and new with new: each release of Python and of Celery once.
MATRIX = {
    "3.11": ("celery==5.5.*", "asyncpg==0.32.*", "anyio==4.4.*"),
    "3.12": ("celery==5.6.*",),
    "3.13": ("celery>=5.7",),
    "3.14": ("celery>=5.7",),
}
NEWEST = MATRIX["3.14"]
#: That of every second worker of the fault suite: the first on which no signal handler
#: runs in a process that a thread has forked, while it computes.
OTHER_PYTHON = "3.13"
#: The Python that runs nox.
THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
OTHER_PYTHONS = [python for python in MATRIX if python != THIS_PYTHON]


def group(name: str) -> tuple[str, ...]:
    """Return the requirements of one of the project's dependency groups."""
    return nox.project.dependency_groups(PROJECT, name)


def install_tests(session: nox.Session, python: str = THIS_PYTHON) -> None:
    """Install aioabort and its tests, with the Celery of the age of *python*."""
    session.install(".", *group("tests"), *MATRIX.get(python, NEWEST))


def run_tests(session: nox.Session, *runner: str) -> None:
    """Test what is installed; without the variable, Python would prefer the source."""
    # Each process has a PostgreSQL and workers of its own.
    processes = ("--numprocesses=auto", "--maxprocesses=4", "--dist=worksteal")
    session.run(
        *(*(runner or ("python",)), "-m", "pytest", *processes, *session.posargs),
        env={"PYTHONSAFEPATH": "1"},
    )


def run_covered(session: nox.Session) -> None:
    """Run the tests under coverage, and fail below the share in pyproject.toml."""
    session.run("coverage", "erase")
    run_tests(session, "coverage", "run")
    session.run("coverage", "combine", "--quiet")
    # Some of the tests cannot reach what all of them must.
    share = ("--fail-under=0",) if session.posargs else ()
    session.run("coverage", "report", *share)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests on the Python that runs nox."""
    install_tests(session)
    if os.environ.get("AIOABORT_TEST_COVERAGE") == "1":
        run_covered(session)
    else:
        run_tests(session)


@nox.session
def coverage(session: nox.Session) -> None:
    """Run the tests under coverage; too few lines that run in one of them are an error."""
    install_tests(session)
    run_covered(session)


@nox.session(python=OTHER_PYTHONS)
def matrix(session: nox.Session) -> None:
    """Run the tests on another Python, with the Celery of its age."""
    install_tests(session, str(session.python))
    run_tests(session)


@nox.session
def faults(session: nox.Session) -> None:
    """Try to lose an abort: half an hour, eight minutes with --quick.

    Every second worker runs on another Python, if that is installed.
    """
    session.install(".", *group("tests"), *NEWEST)
    other = other_python(session)
    session.run(
        *("python", "-m", "pytest", "tests/faults", *other, *session.posargs),
        env={"PYTHONSAFEPATH": "1"},
    )


def other_python(session: nox.Session) -> tuple[str, ...]:
    """Install what workers need for OTHER_PYTHON; return the option that names it."""
    program = shutil.which(f"python{OTHER_PYTHON}")
    # That of pyenv is there even if its version is not chosen.
    if program is None or subprocess.run([program, "-c", ""], check=False).returncode:
        session.warn(f"all workers run on the same Python: no {OTHER_PYTHON} found")
        return ()
    folder = Path(session.virtualenv.location) / f"other-{OTHER_PYTHON}"
    python = folder / "bin" / "python"
    if not python.exists():
        session.run(program, "-m", "venv", folder, external=True)
    # kombu needs packaging for Redis, and does not say so.
    drivers = ("packaging", "psycopg[binary]", "redis", "sqlalchemy")
    packages = (".", *drivers, "django-celery-results", "gevent", *NEWEST)
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    session.run(python, *pip, *packages, external=True)
    return (f"--other-python={python.absolute()}",)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure aioabort next to its peers: a quarter of an hour, less with --quick."""
    session.install(".", *group("bench"))
    session.run("python", "-m", "tests.benchmarks", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Show it: on a page, or with ``-- --compare`` and in CI in a table."""
    session.install(".[demo]")
    session.run(
        *("python", "-m", "aioabort.demo", *session.posargs),
        # After Ctrl-C it ends a worker and a PostgreSQL, which would otherwise stay.
        interrupt_timeout=30,
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Check the style, the format and the direction of imports."""
    session.install(*group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types, and that the wheel shows complete types to its users."""
    session.install(".[demo]", *group("typing"))
    session.run("mypy", "aioabort", "tests/typing")
    session.run("basedpyright")
    # From a folder without the source, which would be found before the wheel.
    session.chdir(Path(session.create_tmp()))
    session.run("basedpyright", "--verifytypes", "aioabort", "--ignoreexternal")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into build/docs; a warning is an error."""
    session.install(".", "pytest", *group("docs"))
    session.run(
        "sphinx-build", "-n", "-q", "-W", "docs", "build/docs", *session.posargs
    )
