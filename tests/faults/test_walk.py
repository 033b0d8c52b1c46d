"""The random walk over three pools, with results in PostgreSQL and in Redis."""

import random
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from aioabort import AbortClient

from .conftest import create_database
from .postgres import Postgres, Programs
from .processes import Redis
from .walk import Walk
from .workers import Diary, Place, Worker

POOLS = {"prefork": 4, "threads": 6, "gevent": 20}

WALKERS = 24


@pytest.mark.parametrize("results", ["postgresql", "redis"])
async def test_nothing_is_odd(
    results: str, folder: Path, pytestconfig: pytest.Config
) -> None:
    """Every receipt agrees with the diary of its task, and every wait ends."""
    seconds = pytestconfig.getoption("walk")
    assert seconds is not None, "only collected with --walk"
    place, seed = folder / f"walk-{results}", pytestconfig.getoption("seed")
    async with AsyncExitStack() as stack:
        for name in ("programs", "postgres", "redis"):
            (place / name).mkdir(parents=True)
        place.chmod(0o711)
        postgres = Postgres(Programs(place / "programs"), place / "postgres", {})
        postgres.create()
        redis = Redis(place / "redis")
        for server in (postgres, redis):
            await server.start()
            stack.push_async_callback(server.stop)
        await create_database(postgres, "walk")
        dsn = postgres.dsn("walk")
        settings: dict[str, Any] = {"worker_enable_remote_control": True}
        if results == "redis":
            settings |= {"result_backend": redis.url, "aioabort_dsn": dsn}

        diary = Diary(place)
        stack.callback(diary.close)
        other_python = pytestconfig.getoption("other_python")
        broker = {"broker_url": redis.url}
        workers_place = Place(place, broker, diary, other_python)
        workers = [
            Worker(workers_place, pool, dsn, pool=pool, concurrency=count, **settings)
            for pool, count in POOLS.items()
        ]
        async with anyio.create_task_group() as group:
            for worker in workers:
                # A body that Celery has revoked may run on: see Story. A threads pool
                # would wait for it.
                stack.push_async_callback(worker.kill)
                group.start_soon(worker.start)
        queues = {
            worker.name: workers_place.app(worker.name, dsn, **settings)
            for worker in workers
        }
        for queue in queues.values():
            stack.callback(queue.close)
        client = await stack.enter_async_context(AbortClient(queues["prefork"]))

        walk = Walk(client, queues, diary, random.Random(seed))
        await walk.run(WALKERS, seconds / 2)
        terminal = pytestconfig.get_terminal_writer()
        terminal.line()
        for line in walk.report():
            terminal.line(f"{results}: {line}")
        assert walk.stories > WALKERS
        assert not walk.oddities
