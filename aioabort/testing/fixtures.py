"""pytest fixtures: add this module to ``pytest_plugins`` in your conftest.py."""

import os
from collections.abc import Generator
from uuid import uuid4

import pytest
from anyio.from_thread import start_blocking_portal

from aioabort.dsn import parse_dsn
from aioabort.postgres.databases import temporary_database
from aioabort.testing.postgres import dsn_of, throwaway_postgres

#: The DSN of a PostgreSQL whose role may create databases. Without it, the fixtures
#: start a throw-away server.
SERVER_VARIABLE = "AIOABORT_TEST_DSN"


@pytest.fixture(scope="session")
def aioabort_server() -> Generator[str]:
    """Return the DSN of the PostgreSQL server for all tests; start one if needed."""
    if given := os.environ.get(SERVER_VARIABLE):
        yield given
    else:
        with throwaway_postgres() as server:
            yield server.dsn()


@pytest.fixture
def aioabort_dsn(aioabort_server: str) -> Generator[str]:
    """Return the DSN of an empty PostgreSQL database, dropped after the test."""
    name = f"aioabort_{uuid4().hex}"
    server = parse_dsn(aioabort_server, setting=f"${SERVER_VARIABLE}")
    with (
        # An event loop in another thread: the test may run one in this thread.
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(temporary_database(server, name)),
    ):
        yield dsn_of(aioabort_server, name)
