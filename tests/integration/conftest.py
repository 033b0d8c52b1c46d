"""A store, its database, and a network between them that can be cut."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import asyncpg
import psycopg.conninfo
import pytest
from celery import Celery
from psycopg import sql

from aioabort.postgres.pool import open_pool
from aioabort.postgres.store import Store, open_store
from aioabort.settings import read_settings


@pytest.fixture
def task_id() -> str:
    return str(uuid4())


@pytest.fixture
async def database(dsn: str) -> AsyncIterator["asyncpg.Connection[Any]"]:
    """A connection of the test's own to the database of ``app``."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def store(app: Celery) -> AsyncIterator[Store]:
    """The store of ``app``, over a pool."""
    settings = read_settings(app)
    async with open_pool(settings.dsn, max_size=8) as pool:
        yield await open_store(pool, settings)


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


class Network:
    """What lies between a client and PostgreSQL: it can be cut, frozen, and mended."""

    def __init__(self, dsn: str) -> None:
        self._target = psycopg.conninfo.conninfo_to_dict(dsn)
        self._server: asyncio.Server | None = None
        self._port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self.connections = 0
        #: How many times a client has sent something.
        self.requests = 0

    @property
    def dsn(self) -> str:
        """The address of the same database, through this network."""
        user = quote(str(self._target["user"]))
        return f"postgresql://{user}@127.0.0.1:{self._port}/{self._target['dbname']}"

    async def mend(self) -> None:
        """Let connections through, on the same port as before."""
        self._server = await asyncio.start_server(
            self._forward, "127.0.0.1", self._port
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Reset every connection and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()

    def freeze(self) -> None:
        """Let nothing through on the connections that there are, and say nothing.

        New ones work, as they do when a firewall has forgotten the old.
        """
        self._flows.clear()
        self._flows = asyncio.Event()
        self._flows.set()

    def _count(self) -> None:
        self.requests += 1

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.connections += 1
        host = str(self._target.get("host", "localhost"))
        port = int(str(self._target.get("port", 5432)))
        if host.startswith("/"):
            far = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            far = await asyncio.open_connection(host, port)
        writers = {writer, far[1]}
        self._writers |= writers
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, far[1], self._flows, self._count))
                group.create_task(_pump(far[0], writer, self._flows))
        finally:
            self._writers -= writers


async def _pump(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    flows: asyncio.Event,
    count: Callable[[], None] = lambda: None,
) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            await flows.wait()
            count()
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.fixture
async def network(dsn: str) -> AsyncIterator[Network]:
    """The network to ``dsn``, working."""
    network = Network(dsn)
    await network.mend()
    yield network
    await network.cut()
