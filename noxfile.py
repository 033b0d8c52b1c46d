"""What is run to check aioabort; every session installs what it needs."""

from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
# An interpreter that is missing is reported, not fetched.
nox.options.download_python = "never"
nox.options.error_on_external_run = True
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "typing", "docs", "tests"]

PROJECT = nox.project.load_toml("pyproject.toml")
# Old with old and new with new: each release of Python and of Celery once.
MATRIX = {
    "3.11": ("celery==5.5.*", "asyncpg==0.32.*", "anyio==4.4.*"),
    "3.12": ("celery==5.6.*",),
    "3.13": ("celery>=5.7",),
    "3.14": ("celery>=5.7",),
}


def group(name: str) -> tuple[str, ...]:
    """Return the requirements of one of the project's dependency groups."""
    return nox.project.dependency_groups(PROJECT, name)


def run_tests(session: nox.Session) -> None:
    """Test what is installed; without the variable, Python would prefer the source."""
    # Each process has a PostgreSQL and workers of its own.
    processes = ("--numprocesses=auto", "--maxprocesses=4", "--dist=worksteal")
    session.run(
        *("python", "-m", "pytest", *processes, *session.posargs),
        env={"PYTHONSAFEPATH": "1"},
    )


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests on the Python that runs nox."""
    session.install(".", *group("tests"))
    run_tests(session)


@nox.session(python=list(MATRIX))
def matrix(session: nox.Session) -> None:
    """Run the tests on one Python, with the Celery of its age."""
    session.install(".", *group("tests"), *MATRIX[str(session.python)])
    run_tests(session)


@nox.session
def faults(session: nox.Session) -> None:
    """Try to lose an abort: a quarter of an hour, six minutes with --quick."""
    session.install(".", *group("tests"))
    session.run(
        *("python", "-m", "pytest", "tests/faults", *session.posargs),
        env={"PYTHONSAFEPATH": "1"},
    )


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
        # After Ctrl-C it ends a worker and a PostgreSQL, which else would stay.
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
