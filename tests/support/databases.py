"""A fresh PostgreSQL database for each test. A pytest plugin."""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from celery import Celery
from psycopg import sql
from psycopg.rows import dict_row

from aioabort import AbortClient
from aioabort.testing.postgres import dsn_of, throwaway_postgres

DSN_VARIABLE = "AIOABORT_TEST_DSN"

#: Creates a database with the tables of Celery and aioabort, and drops it when the
#: block ends.
NewDatabase = Callable[[], AbstractContextManager[str]]


class Server(Protocol):
    """A PostgreSQL in which databases may be created."""

    def dsn(self, database: str = "postgres") -> str:
        """Return the address of *database*, for asyncpg and libpq."""
        ...


class GivenServer:
    """The server of $AIOABORT_TEST_DSN."""

    def __init__(self, url: str) -> None:
        self._url = url

    def dsn(self, database: str = "postgres") -> str:
        """Return the address of *database*, for asyncpg and libpq."""
        return dsn_of(self._url, database)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The server of $AIOABORT_TEST_DSN, or a throw-away one."""
    if given := os.environ.get(DSN_VARIABLE):
        yield GivenServer(given)
    else:
        with throwaway_postgres() as server:
            yield server


@pytest.fixture(scope="session")
def template(server: Server) -> Iterator[str]:
    """The name of a database with Celery's tables and aioabort's."""
    with temporary_database(server) as dsn:
        create_tables(dsn)
        yield urlsplit(dsn).path[1:]


@pytest.fixture(scope="session")
def new_database(server: Server, template: str) -> NewDatabase:
    """A context manager for a database with all tables, for fixtures of any scope."""
    return lambda: temporary_database(server, template)


@pytest.fixture
def dsn(new_database: NewDatabase) -> Iterator[str]:
    """A fresh database with Celery's tables and aioabort's."""
    with new_database() as dsn:
        yield dsn


@pytest.fixture
def empty_dsn(server: Server) -> Iterator[str]:
    """A fresh database without any table."""
    with temporary_database(server) as dsn:
        yield dsn


@contextmanager
def temporary_database(server: Server, template: str = "template0") -> Iterator[str]:
    """Create a database from *template*; drop it when the block ends."""
    name = f"aioabort_{uuid4().hex}"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(
            create.format(sql.Identifier(name), sql.Identifier(template))
        )
        try:
            yield server.dsn(name)
        finally:
            connection.execute(drop.format(sql.Identifier(name)))


def create_tables(dsn: str) -> None:
    """Create Celery's tables and aioabort's. For a thread without an event loop."""
    asyncio.run(create_tables_async(dsn))


async def create_tables_async(dsn: str) -> None:
    """Create Celery's tables and aioabort's."""
    app = Celery(
        "tables", broker="memory://", backend=celery_url(dsn), set_as_current=False
    )
    # Celery creates its tables when its first session opens.
    app.backend.ResultSession().close()
    async with AbortClient(app):
        app.close()


def celery_url(dsn: str) -> str:
    """Return *dsn* as the URL of Celery's result backend."""
    return dsn.replace("postgresql://", "db+postgresql+psycopg://", 1)


def query(dsn: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Run one statement on a connection of its own; return its rows, if any."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), values)
        return cursor.fetchall() if cursor.description else []


def query_dicts(dsn: str, statement: str, *values: object) -> list[dict[str, Any]]:
    """Run one statement on a connection of its own; return its rows as dicts."""
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as connection:
        cursor = connection.execute(statement.encode(), values)
        return cursor.fetchall() if cursor.description else []
