"""Where it is measured: one server for all, a database for each subject, a broker."""

import asyncio
import platform
import socket
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from os import cpu_count, sysconf
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import psycopg
from celery import Celery
from psycopg import sql

from aioabort import AbortClient
from aioabort.testing.postgres import dsn_of, throwaway_postgres

from .records import Records

HOST = "127.0.0.1"
REDIS = (HOST, 6379)

#: As durable as in production, and with room for what is measured: what a throw-away
#: server leaves out to be fast is what a commit costs.
SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "max_connections": "400",
    "max_wal_size": "4GB",
    "shared_buffers": "512MB",
}

PACKAGES = (
    *("aioabort", "anyio", "asyncpg", "celery", "kombu", "pgqueuer", "procrastinate"),
    *("psycopg", "redis", "saq", "sqlalchemy"),
)

#: Of a database; both by what the server itself counts.
TRANSACTIONS = (
    "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = $1"
)
CONNECTIONS = """
    -- $1 database, $2 an application that does not count
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = $1 AND application_name <> $2
"""

BACKENDS = "SELECT pid FROM pg_stat_activity WHERE datname = $1"


@dataclass
class Place:
    """One run of the benchmark."""

    server: str
    broker: dict[str, Any]
    folder: Path
    quick: bool
    records: Records = field(default_factory=Records)

    @contextmanager
    def database(self, template: str = "template0") -> Generator[str]:
        """Have a database with Celery's tables and ours; yield its DSN."""
        name = f"aioabort_{uuid4().hex}"
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
        identifier = sql.Identifier(name)
        with psycopg.connect(self.server, autocommit=True) as connection:
            connection.execute(create.format(identifier, sql.Identifier(template)))
            try:
                yield dsn_of(self.server, name)
            finally:
                connection.execute(drop.format(identifier))

    @contextmanager
    def tables(self) -> Generator[str]:
        """Have a database with Celery's tables and ours; yield its DSN."""
        with self.database() as dsn:
            app = make_app(dsn)
            app.backend.ResultSession().close()
            asyncio.run(_create_request_table(app))
            yield dsn

    def pick(self, full: int, quick: int) -> int:
        """Return *full*, or *quick* if it is to be quick."""
        return quick if self.quick else full


def backend_url(dsn: str) -> str:
    """Return the URL of Celery's own result backend."""
    return dsn.replace("postgresql://", "db+postgresql+psycopg://", 1)


def make_app(dsn: str, **settings: Any) -> Celery:
    """Return an app that publishes to no worker and keeps its results at *dsn*."""
    app = Celery(
        "bench", broker="memory://", backend=backend_url(dsn), set_as_current=False
    )
    app.conf.update(settings)
    return app


def named(dsn: str, name: str) -> str:
    """Return *dsn* with an application name, by which its connections are counted."""
    separator = "&" if urlsplit(dsn).query else "?"
    return f"{dsn}{separator}application_name={name}"


class Observer:
    """Counts what happens in one database, from another one."""

    def __init__(self, connection: "asyncpg.Connection[Any]", dsn: str) -> None:
        self._connection = connection
        self._database = urlsplit(dsn).path[1:]

    async def transactions(self) -> int:
        """Return how many transactions the database has seen.

        A backend reports what it did when it ends, and else once a second at most:
        exact is the count of those that have been closed.
        """
        return int(await self._connection.fetchval(TRANSACTIONS, self._database))

    async def connections(self, without: str = "nobody") -> int:
        """Return how many connections there are, *without* those of one application."""
        return int(
            await self._connection.fetchval(CONNECTIONS, self._database, without)
        )

    async def cpu(self) -> float:
        """Return the seconds of processor that those connections' backends have used.

        0 if that is unknown, as for a server on another machine.
        """
        backends = await self._connection.fetch(BACKENDS, self._database)
        paths = [Path(f"/proc/{backend['pid']}/schedstat") for backend in backends]
        with suppress(OSError):
            return sum(int(path.read_text().split()[0]) for path in paths) / 1e9
        return 0.0


@asynccontextmanager
async def observer(place: Place, dsn: str) -> AsyncGenerator[Observer]:
    """Observe the database of *dsn* for the time of the block."""
    connection = await asyncpg.connect(place.server)
    try:
        yield Observer(connection, dsn)
    finally:
        await connection.close()


@contextmanager
def open_place(dsn: str | None, *, quick: bool) -> Generator[Place]:
    """Set up the place, with a server of its own if *dsn* is None."""
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="aioabort-bench-"))
        )
        if dsn is None:
            dsn = stack.enter_context(_server())
        broker = _broker(folder)
        place = Place(dsn, broker, folder, quick)
        place.records.about.update(_about(dsn, broker, quick=quick))
        yield place


@contextmanager
def _server() -> Generator[str]:
    """Run a server that is reached over TCP, as in production."""
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    settings = {**SETTINGS, "listen_addresses": HOST, "port": str(port)}
    with throwaway_postgres(settings=settings):
        # It has no TLS, which asyncpg would try first, and complain.
        yield f"postgresql://postgres@{HOST}:{port}/postgres?sslmode=disable"


def _broker(folder: Path) -> dict[str, Any]:
    """Return settings for Redis if it answers, and else for a folder."""
    try:
        socket.create_connection(REDIS, timeout=1).close()
    except OSError:
        queues = folder / "queues"
        queues.mkdir()
        return {
            "broker_url": "filesystem://",
            "broker_transport_options": {
                "data_folder_in": str(queues),
                "data_folder_out": str(queues),
                "control_folder": str(folder / "exchanges"),
                "polling_interval": 0.01,
            },
        }
    return {"broker_url": "redis://{}:{}/9".format(*REDIS)}


def _about(dsn: str, broker: dict[str, Any], *, quick: bool) -> dict[str, Any]:
    with psycopg.connect(dsn) as connection:
        server = connection.info.parameter_status("server_version") or "?"
        settings = {
            name: connection.execute(f"SHOW {name}").fetchone()[0]  # type: ignore[index]
            for name in ("fsync", "shared_buffers", "synchronous_commit")
        }
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "quick": quick,
        "machine": {
            "cores": cpu_count(),
            "memory": sysconf("SC_PAGE_SIZE") * sysconf("SC_PHYS_PAGES"),
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
        },
        "broker": broker["broker_url"].split(":")[0],
        "postgresql": {"version": server.split()[0], **settings},
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    names = [line for line in text.splitlines() if line.startswith("model name")]
    return names[0].split(":")[1].strip() if names else platform.processor()


async def _create_request_table(app: Celery) -> None:
    async with AbortClient(app):
        pass
