"""The database of every test: real PostgreSQL, fresh, and gone afterwards."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from celery import Celery
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from psycopg import sql

from aioabort import AbortClient
from aioabort.testing.postgres import dsn_of, throwaway_postgres

DSN_VARIABLE = "AIOABORT_TEST_DSN"


def pytest_configure() -> None:
    """Heed the signals that a shell has its background jobs ignore.

    Programs under test would inherit that, and are sent some.
    """
    for request, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
    ):
        if signal.getsignal(request) is signal.SIG_IGN:
            signal.signal(request, handler)


class Server(Protocol):
    """A PostgreSQL in which databases may be created."""

    def dsn(self, database: str = "postgres") -> str:
        """Return the address of *database*, for asyncpg and libpq."""
        ...


class GivenServer:
    """The server that somebody else runs."""

    def __init__(self, url: str) -> None:
        self._url = url

    def dsn(self, database: str = "postgres") -> str:
        """Return the address of *database*, for asyncpg and libpq."""
        return dsn_of(self._url, database)


#: Creates a database, from the tables of Celery and aioabort or from nothing, and
#: drops it when the block ends.
NewDatabase = Callable[..., Any]

#: Makes a Celery app that keeps its results at a DSN; the rest are settings.
MakeApp = Callable[..., Celery]


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The server of $AIOABORT_TEST_DSN, or a throw-away one."""
    if given := os.environ.get(DSN_VARIABLE):
        yield GivenServer(given)
    else:
        with throwaway_postgres() as server:
            yield server


@pytest.fixture(scope="session")
def celery_url() -> Callable[[str], str]:
    """Turns a DSN into the URL of Celery's result backend."""
    return _celery_url


@pytest.fixture(scope="session")
def template(server: Server) -> Iterator[str]:
    """The name of a database with Celery's tables and aioabort's."""
    with _database(server) as dsn:
        app = _make_app(dsn)
        # Celery creates its tables when a session is first asked for.
        app.backend.ResultSession().close()
        asyncio.run(_create_request_table(app))
        app.close()
        yield urlsplit(dsn).path[1:]


@pytest.fixture(scope="session")
def new_database(server: Server, template: str) -> NewDatabase:
    """A context manager for a database with all tables, for fixtures of any scope."""
    return lambda: _database(server, template)


@pytest.fixture
def dsn(new_database: NewDatabase) -> Iterator[str]:
    """A fresh database with Celery's tables and aioabort's."""
    with new_database() as dsn:
        yield dsn


@pytest.fixture
def empty_dsn(server: Server) -> Iterator[str]:
    """A fresh database without any table."""
    with _database(server) as dsn:
        yield dsn


@pytest.fixture
def make_app() -> Iterator[MakeApp]:
    """Makes apps: ``make_app(dsn, aioabort_poll_interval=0.1)``."""
    apps: list[Celery] = []

    def make(dsn: str, **settings: Any) -> Celery:
        apps.append(_make_app(dsn, **settings))
        return apps[-1]

    yield make
    for app in apps:
        app.close()


@pytest.fixture
def app(dsn: str, make_app: MakeApp) -> Celery:
    """An app that publishes to nobody and keeps its results at ``dsn``."""
    return make_app(dsn)


@pytest.fixture
async def client(app: Celery) -> AsyncIterator[AbortClient]:
    """An open client of ``app``."""
    async with AbortClient(app) as client:
        yield client


@pytest.fixture(scope="session")
def reader() -> InMemoryMetricReader:
    """The reader of this process, which can have one provider only."""
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader], shutdown_on_exit=False))
    return reader


@pytest.fixture(scope="session")
def exporter() -> InMemorySpanExporter:
    """The exporter of this process, which can have one provider only."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


def _celery_url(dsn: str) -> str:
    return dsn.replace("postgresql://", "db+postgresql+psycopg://", 1)


def _make_app(dsn: str, **settings: Any) -> Celery:
    app = Celery(
        "tests",
        broker="memory://",
        backend=_celery_url(dsn),
        # Whatever falls back to the current app by mistake must not find this one.
        set_as_current=False,
    )
    app.conf.update(settings)
    return app


async def _create_request_table(app: Celery) -> None:
    async with AbortClient(app):
        pass


@contextmanager
def _database(server: Server, template: str = "template0") -> Iterator[str]:
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
