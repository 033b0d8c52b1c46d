"""Results are in Redis, and only the requests in PostgreSQL."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import anyio
import pytest
from celery import Celery

from aioabort.timing import Timing

from .conftest import create_database
from .processes import Redis
from .rounds import Arena, run_round
from .workers import Worker

pytestmark = pytest.mark.skipif(
    not Redis.is_installed(), reason="redis-server is not installed"
)

DATABASE = "elsewhere"

#: Seconds after which the broker delivers a message again.
VISIBILITY_TIMEOUT = 1

#: Seconds that a read of the results may delay abort().
READ_TIMEOUT = 0.4

#: The same and the time of a busy machine.
LATEST_ABORT = 5.0


@dataclass(frozen=True)
class Elsewhere:
    """Workers with results in *redis*, and with requests in the database *dsn*."""

    redis: Redis
    dsn: str
    workers: list[Worker]


@pytest.fixture(scope="module")
def elsewhere(arena: Arena) -> Iterator[Elsewhere]:
    """A prefork and a threads worker, and a broker that soon delivers again."""
    dsn = arena.postgres.dsn(DATABASE)
    redis = Redis(arena.subfolder("results"))
    settings = {
        "result_backend": redis.url,
        "aioabort_dsn": dsn,
        "broker_transport_options": {
            "visibility_timeout": VISIBILITY_TIMEOUT,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
        },
        # Celery would replace a FAILURE by STARTED when another run begins.
        "task_track_started": False,
    }
    workers = [
        Worker(arena.place, f"elsewhere-{pool}", dsn, pool=pool, **settings)
        for pool in ("prefork", "threads")
    ]

    async def start() -> None:
        await redis.start()
        await create_database(arena.postgres, DATABASE)
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(worker.start())

    async def stop() -> None:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(redis.stop)
            group = await stack.enter_async_context(asyncio.TaskGroup())
            for worker in workers:
                group.create_task(worker.stop())

    asyncio.run(start())
    yield Elsewhere(redis, dsn, workers)
    asyncio.run(stop())


@pytest.fixture
def app(arena: Arena, elsewhere: Elsewhere) -> Iterator[Celery]:
    """An app for clients that soon give up a read of the results."""
    app = arena.app(elsewhere.workers[0])
    app.conf.aioabort_timing = Timing(statement_timeout=READ_TIMEOUT)
    yield app
    app.close()


async def test_redelivery(arena: Arena, elsewhere: Elsewhere, app: Celery) -> None:
    """Redis delivers again what is not acknowledged in time: ids run twice.

    run: sees the abort, cleans up | visibility timeout: another run | both end
    """
    await run_round(
        arena,
        "visibility timeout, results in Redis",
        anyio.sleep,
        elsewhere.workers,
        dsn=elsewhere.dsn,
        results_in=app,
        share=0.6,
        kinds={"undecided": 6, "failing": 2, "returning": 2},
        cleaning=1.0,
        longest_cleanup=2.5 * VISIBILITY_TIMEOUT,
        is_final=True,
        # The outcome is that of the run that ended first.
        loses_results=True,
    )


async def test_results_frozen(arena: Arena, elsewhere: Elsewhere, app: Celery) -> None:
    """While no result can be read, each abort() returns, and each task sees it."""

    async def inject(seconds: float) -> None:
        os.kill(elsewhere.redis.pid, signal.SIGSTOP)
        try:
            await anyio.sleep(seconds)
        finally:
            os.kill(elsewhere.redis.pid, signal.SIGCONT)

    result = await run_round(
        arena,
        "results in Redis, frozen (SIGSTOP)",
        inject,
        elsewhere.workers,
        dsn=elsewhere.dsn,
        client_app=app,
        results_in=app,
        share=0.6,
        is_local=True,
        loses_results=True,
    )
    longest = max(result.aborts)
    arena.notes.append(f"results in Redis, frozen: longest abort() {longest:.2f} s")
    assert longest < LATEST_ABORT
