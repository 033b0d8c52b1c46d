"""Fixtures of pytest's: name this module in ``pytest_plugins`` of your conftest.py."""

import os
from collections.abc import Generator
from uuid import uuid4

import pytest
from anyio.from_thread import start_blocking_portal

from aioabort.dsn import parse_dsn
from aioabort.postgres.databases import temporary_database
from aioabort.testing.postgres import dsn_of, throwaway_postgres

#: Names a PostgreSQL whose role may create databases; without it, one is started.
SERVER_VARIABLE = "AIOABORT_TEST_DSN"


@pytest.fixture(scope="session")
def aioabort_server() -> Generator[str]:
    """Run a PostgreSQL for all tests, or take the one that is given; return its DSN."""
    if given := os.environ.get(SERVER_VARIABLE):
        yield given
    else:
        with throwaway_postgres() as server:
            yield server.dsn()


@pytest.fixture
def aioabort_dsn(aioabort_server: str) -> Generator[str]:
    """Have an empty database for one test, on a real PostgreSQL; return its DSN."""
    name = f"aioabort_{uuid4().hex}"
    server = parse_dsn(aioabort_server, setting=f"${SERVER_VARIABLE}")
    with (
        # A loop in a thread of its own: the test may have one here.
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(temporary_database(server, name)),
    ):
        yield dsn_of(aioabort_server, name)
