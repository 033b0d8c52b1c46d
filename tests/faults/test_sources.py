"""Results outside of Celery's tables, through outages of PostgreSQL and their own.

Each kind of source is served by a prefork and a threads worker. No client reads the
results as the workers store them: django-celery-results by asyncpg instead of the ORM,
Redis by redis.asyncio, and SQLite in a thread.
"""

import asyncio
import gc
import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread
from celery import Celery

from aioabort.orm import close_connection
from tests.support.django_results import database_settings, migrate
from tests.support.redis_servers import (
    RedisProgram,
    SentinelServers,
    redis_program,
    redis_with_sentinel,
)
from tests.support.waiting import until

from .audit import Audit
from .conftest import create_database
from .rounds import Arena, Inject, run_round
from .workers import Worker

# Celery's producers unsubscribe when a result is forgotten, even from a Redis that is away.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)

#: Bodies that only the abort ends. If another task's result is lost before it was read,
#: nothing says that the task has ended, and nothing can settle a later request.
ENDED_BY_ABORT = {
    "raising": 4,
    "returning": 2,
    "progressing": 1,
    "waiting": 1,
    "cancelled": 1,
    "retrying": 1,
}

#: The same, and they store nothing before their end.
SILENT = {"raising": 4, "returning": 2, "failing": 1, "waiting": 2, "cancelled": 2}

#: Each command is written to the disk before it is answered.
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


@dataclass(frozen=True)
class Source:
    """Workers with results in one place, and with requests in the database *dsn*."""

    arena: Arena
    name: str
    dsn: str
    workers: list[Worker]
    #: For the suite's own look at the results.
    app: Celery
    redis: RedisProgram | None = None
    sentinel: SentinelServers | None = None
    file: Path | None = None

    async def run_round(self, name: str, inject: Inject, **options: Any) -> Audit:
        """Run a round with these workers."""
        return await run_round(
            self.arena,
            f"{name}, {self.name}",
            inject,
            self.workers,
            dsn=self.dsn,
            results_in=self.app,
            share=self.arena.size.source_share,
            **options,
        )

    def forget(self, task_ids: list[str]) -> None:
        """Delete results, as an expiry, an eviction or a cleanup does."""
        try:
            for task_id in task_ids:
                # An AsyncResult would keep a subscription to Redis.
                self.app.backend.forget(task_id)
        finally:
            close_connection(self.app)


class SourceMaker:
    """Makes the source *name*; what it starts ends with *stack*."""

    def __init__(self, arena: Arena, stack: ExitStack, name: str) -> None:
        self._arena = arena
        self._name = name
        self._folder = arena.subfolder(f"source-{name}")
        self._database = f"source_{name.replace('-', '_')}"
        self._dsn = arena.postgres.dsn(self._database)
        self._stack = stack
        self._environment: dict[str, str] = {}
        self._parts: dict[str, Any] = {}

    def source(self) -> Source:
        """Create it, and start its workers."""
        asyncio.run(create_database(self._arena.postgres, self._database))
        settings = {"aioabort_dsn": self._dsn} | self._start_source()
        workers = [
            Worker(
                self._arena.place,
                f"{self._name}-{pool}",
                self._dsn,
                pool=pool,
                environment=self._environment,
                **settings,
            )
            for pool in ("prefork", "threads")
        ]
        app = self._arena.app(workers[0])
        self._stack.callback(app.close)
        self._stack.callback(lambda: asyncio.run(_stop(workers)))
        asyncio.run(_start(workers))
        # What Celery's producers have subscribed to, while Redis is there.
        self._stack.callback(gc.collect)
        return Source(self._arena, self._name, self._dsn, workers, app, **self._parts)

    def _start_source(self) -> dict[str, Any]:
        """Start what stores the results; return the settings of its workers."""
        enter = self._stack.enter_context
        if self._name == "redis":
            redis = self._parts["redis"] = enter(redis_program(self._folder, *DURABLE))
            return {"result_backend": redis.url}
        if self._name == "sentinel":
            servers = enter(redis_with_sentinel(self._folder))
            self._parts["sentinel"] = servers
            options = {"master_name": "mymaster"}
            return {
                "result_backend": servers.url,
                "result_backend_transport_options": options,
            }
        if self._name == "sqlite":
            file = self._parts["file"] = self._folder / "results"
            # SQLAlchemy's pool for files takes no size.
            return {
                "result_backend": f"db+sqlite:///{file}",
                "database_engine_options": {},
            }
        migrate(self._dsn)
        self._environment = {
            "AIOABORT_FAULTS_DATABASE": json.dumps(database_settings(self._dsn)),
            "DJANGO_SETTINGS_MODULE": "faultdjango",
        }
        # Celery would fail each task whose STARTED it cannot store.
        return {"result_backend": "django-db", "task_track_started": False}


async def _start(workers: list[Worker]) -> None:
    async with asyncio.TaskGroup() as group:
        for worker in workers:
            group.create_task(worker.start())


async def _stop(workers: list[Worker]) -> None:
    async with asyncio.TaskGroup() as group:
        for worker in workers:
            group.create_task(worker.stop())


@pytest.fixture(scope="module", params=["django-db", "redis", "sqlite"])
def source(request: pytest.FixtureRequest, arena: Arena) -> Iterator[Source]:
    """Each kind of source by turns."""
    with ExitStack() as stack:
        yield SourceMaker(arena, stack, request.param).source()


async def test_postgres_restarted(source: Source) -> None:
    """The requests are away; those results that are not in PostgreSQL are there."""
    postgres, options = source.arena.postgres, {}
    if source.name == "django-db":
        # Celery gives up at once what it cannot store by the ORM.
        options = {"kinds": SILENT, "loses_results": True}
    await source.run_round("PostgreSQL restarted", postgres.restart, **options)


async def test_backends_terminated(source: Source) -> None:
    """The server ends each connection once a second, those of the ORM too."""
    postgres = source.arena.postgres
    await source.run_round("backends terminated", postgres.end_backends)


async def test_results_forgotten(source: Source) -> None:
    """Results are deleted while their tasks run, and before they are awaited."""
    chance = random.Random(source.arena.seed)

    async def inject(seconds: float) -> None:
        with anyio.move_on_after(seconds):
            while True:
                load = source.arena.load
                assert load is not None
                chosen = chance.sample(load.items, len(load.items) // 4)
                ids = [item.task_id for item in chosen]
                await to_thread.run_sync(source.forget, ids)
                await anyio.sleep(0.1)

    await source.run_round(
        "results forgotten", inject, kinds=ENDED_BY_ABORT, loses_results=True
    )


@pytest.mark.parametrize("source", ["redis"], indirect=True)
async def test_redis_restarted(source: Source) -> None:
    """Redis is away for a while, and has kept everything."""
    redis = source.redis
    assert redis is not None

    async def inject(seconds: float) -> None:
        redis.stop()
        await anyio.sleep(seconds)
        redis.start()

    await source.run_round("Redis restarted", inject)


@pytest.mark.parametrize("source", ["redis"], indirect=True)
async def test_redis_restarted_empty(source: Source) -> None:
    """Redis is away for a while, and has kept nothing."""
    redis = source.redis
    assert redis is not None

    async def inject(seconds: float) -> None:
        redis.stop()
        redis.lose_all()
        await anyio.sleep(seconds)
        redis.start()

    await source.run_round(
        "Redis restarted empty", inject, kinds=ENDED_BY_ABORT, loses_results=True
    )


@pytest.mark.parametrize("source", ["sentinel"], indirect=True)
async def test_failover(source: Source) -> None:
    """A replica becomes the master; what the master had not sent it is lost."""
    servers = source.sentinel
    assert servers is not None

    async def inject(seconds: float) -> None:
        servers.master.stop()
        await until(servers.has_failed_over)
        await anyio.sleep(seconds)

    await source.run_round("failover", inject, kinds=ENDED_BY_ABORT, loses_results=True)


@pytest.mark.parametrize("source", ["sqlite"], indirect=True)
async def test_file_locked(source: Source) -> None:
    """Nothing can be read or written for a while."""
    file = source.file
    assert file is not None

    async def inject(seconds: float) -> None:
        lock = sqlite3.connect(file, isolation_level=None)
        try:
            lock.execute("BEGIN EXCLUSIVE")
            await anyio.sleep(seconds)
        finally:
            lock.close()

    await source.run_round("file locked", inject)
