"""A store, its database, and a network between them that can be cut."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import psycopg
import pytest
from celery import Celery
from psycopg import sql

from aioabort.postgres.pool import open_pool
from aioabort.postgres.request_store import RequestStore, open_request_store
from aioabort.settings import read_settings
from aioabort.worker.agent.agent import stop_agents
from tests.support.brokers import redis_url as url_of_redis
from tests.support.network import Network


@pytest.fixture
def task_id() -> str:
    return str(uuid4())


@pytest.fixture(autouse=True)
def no_agents() -> Iterator[None]:
    """Stop the agents of the test: each test starts its own."""
    yield
    stop_agents()


@pytest.fixture(scope="session")
def redis_url() -> str:
    """The address of a Redis that answers."""
    return url_of_redis()


@pytest.fixture(params=["redis", "sqlite"])
def external_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a result backend that is not PostgreSQL: both by turns."""
    if request.param == "sqlite":
        return f"db+sqlite:///{tmp_path / 'results'}"
    url: str = request.getfixturevalue("redis_url")
    return url


@pytest.fixture
async def database(dsn: str) -> AsyncIterator["asyncpg.Connection[Any]"]:
    """A connection of the test's own to the database of ``app``."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def store(app: Celery) -> AsyncIterator[RequestStore]:
    """The store of ``app``, over a pool."""
    settings = read_settings(app)
    async with open_pool(settings.dsn, 8, settings.timing) as pool:
        yield await open_request_store(pool, settings)


@dataclass(frozen=True)
class Stranger:
    """A role of the server, and its password."""

    role: str
    password: str

    def dsn(self, dsn: str) -> str:
        """Return the address of the same database for this role."""
        user = dsn.partition("://")[2].partition("@")[0]
        return dsn.replace(f"{user}@", f"{self.role}:{self.password}@", 1)


@pytest.fixture
def stranger(dsn: str) -> Iterator[Stranger]:
    """A role that may connect and nothing else."""
    role, password = f"aioabort_{uuid4().hex}", uuid4().hex
    name = sql.Identifier(role)
    with psycopg.connect(dsn, autocommit=True) as connection:
        create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
        connection.execute(create.format(name, sql.Literal(password)))
        yield Stranger(role, password)
        connection.execute(sql.SQL("DROP OWNED BY {}").format(name))
        connection.execute(sql.SQL("DROP ROLE {}").format(name))


@pytest.fixture
async def network(dsn: str) -> AsyncIterator[Network]:
    """The network to ``dsn``, working."""
    network = Network(dsn)
    await network.mend()
    yield network
    await network.cut()
