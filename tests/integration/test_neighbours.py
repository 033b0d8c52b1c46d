"""A locked row, a large result or an odd id of one task delays no abort of another."""

import asyncio
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import psycopg
import pytest
from anyio import fail_after, to_thread
from celery import Celery, states
from psycopg import sql

from aioabort import AbortClient, StoreError
from aioabort.postgres.pool import open_pool
from aioabort.postgres.request_store import RequestStore, open_request_store
from aioabort.settings import read_settings
from aioabort.timing import Timing
from aioabort.worker.agent import agent_connection
from aioabort.worker.run import Run
from tests.integration.steps import CONNECTIONS, end, start_run, waiting_for
from tests.support.apps import MakeApp
from tests.support.databases import Server, create_tables_async
from tests.support.pgbouncer import needs_pgbouncer, running_pgbouncer
from tests.support.waiting import NEVER_POLLED, until

Database: TypeAlias = "asyncpg.Connection[Any]"

#: No timeout of ours ends a wait for a lock within the time of a test.
PATIENT = Timing(statement_timeout=120.0, busy_timeout=120.0)

ROW = "SELECT FROM celery_taskmeta WHERE task_id = $1 FOR UPDATE"

#: Whether another session waits for the row that the session *pid* has locked.
IS_WAITED_FOR = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pg_blocking_pids(pid) = ARRAY[$1::int]
"""


@pytest.fixture
def make_worker(dsn: str, make_app: MakeApp) -> Any:
    """Makes apps whose results are stored by aioabort, and that never poll."""

    def make(address: str = dsn, **settings: Any) -> Celery:
        app = make_app(
            address,
            aioabort_poll_interval=NEVER_POLLED,
            aioabort_timing=PATIENT,
            **settings,
        )
        app.conf.result_backend = f"aioabort+{address}"
        return app

    return make


async def begin(app: Celery, task_id: str | None = None) -> Run:
    """Begin a run, and return when its abort would arrive by a notification."""
    with fail_after(15):
        return await to_thread.run_sync(start_run, app, task_id)


async def abort(store: RequestStore, run: Run) -> None:
    """Abort *run*, and return when its notification has arrived: it is not polled."""
    await store.request_aborts([run.task_id])

    async def is_told() -> bool:
        # The agent may not listen yet.
        await store.notify_workers([run.task_id])
        return run.aborted

    await until(is_told)


async def is_locked_out(database: Database, pid: int) -> bool:
    return bool(await database.fetchval(IS_WAITED_FOR, pid))


async def test_a_locked_row_holds_up_its_own_store_only(
    make_worker: Any, dsn: str, store: RequestStore, database: Database
) -> None:
    """The connection is free for others between two tries of the store.

    row locked | its result is being stored | another task is aborted | unlocked |
    stored
    """
    app = make_worker()
    other = await begin(app)
    await to_thread.run_sync(app.backend.store_result, "held", 1, "PROGRESS")
    locks = await asyncpg.connect(dsn)
    async with locks.transaction():
        await locks.execute(ROW, "held")
        storing = asyncio.create_task(
            to_thread.run_sync(app.backend.store_result, "held", 2, states.SUCCESS)
        )
        await until(lambda: is_locked_out(database, locks.get_server_pid()))
        await abort(store, other)
        # So is the result of another task.
        with fail_after(15):
            await to_thread.run_sync(app.backend.store_result, "free", 3, "SUCCESS")
        assert not storing.done()
    await storing
    await locks.close()
    assert app.backend.get_task_meta("held", cache=False)["result"] == 2


async def test_a_large_result_has_a_connection_to_itself(
    make_worker: Any,
    dsn: str,
    store: RequestStore,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long it takes, aborts arrive over the other connection.

    a large result is being stored, and waits | another task is aborted | it is stored
    """
    monkeypatch.setattr(agent_connection, "LARGE", 1_000)
    app = make_worker()
    other = await begin(app)
    await to_thread.run_sync(app.backend.store_result, "held", 1, "PROGRESS")
    small = await database.fetchval(CONNECTIONS)
    locks = await asyncpg.connect(dsn)
    async with locks.transaction():
        await locks.execute(ROW, "held")
        large = "x" * 2_000
        storing = asyncio.create_task(
            to_thread.run_sync(app.backend.store_result, "held", large, "SUCCESS")
        )
        await until(lambda: is_locked_out(database, locks.get_server_pid()))
        assert await database.fetchval(CONNECTIONS) == small + 1
        await abort(store, other)
        assert not storing.done()
    await storing
    await locks.close()
    assert app.backend.get_task_meta("held", cache=False)["result"] == large

    async def is_closed() -> bool:
        return bool(await database.fetchval(CONNECTIONS) == small)

    await until(is_closed)


async def test_a_foreign_abort_that_takes_long_to_store(
    make_worker: Any,
    store: RequestStore,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """celery.contrib.abortable wrote ABORTED; to add the request delays no other task.

    ABORTED | the task begins, its request is being added | another one is aborted |
    added: the first is aborted
    """
    began, may_end = asyncio.Event(), threading.Event()
    request_aborts = RequestStore.request_aborts
    loop = asyncio.get_running_loop()

    async def slowly(self: RequestStore, task_ids: Sequence[str]) -> Any:
        if "old" in task_ids:
            loop.call_soon_threadsafe(began.set)
            while not may_end.is_set():
                await asyncio.sleep(0.01)
        return await request_aborts(self, task_ids)

    app = make_worker()
    other = await begin(app)
    await database.execute(
        "INSERT INTO celery_taskmeta (id, task_id, status) VALUES (-1, 'old', 'ABORTED')"
    )
    monkeypatch.setattr(RequestStore, "request_aborts", slowly)
    try:
        starting = asyncio.create_task(begin(app, "old"))
        with fail_after(15):
            await began.wait()
        await abort(store, other)
        assert not starting.done()
    finally:
        may_end.set()
    assert (await starting).aborted


async def test_a_foreign_abort_of_a_locked_row(
    make_worker: Any, dsn: str, database: Database
) -> None:
    """Its task starts, and is aborted when the request could be added.

    ABORTED | row locked | the task begins | unlocked | it is aborted
    """
    app = make_worker()
    await begin(app)
    await database.execute(
        "INSERT INTO celery_taskmeta (id, task_id, status) VALUES (-1, 'old', 'ABORTED')"
    )
    locks = await asyncpg.connect(dsn)
    async with locks.transaction():
        await locks.execute(ROW, "old")
        held = await begin(app, "old")
        assert not held.aborted
    await until(lambda: held.aborted)
    await locks.close()


@needs_pgbouncer
async def test_a_locked_row_behind_a_pooler(
    make_worker: Any, dsn: str, store: RequestStore, database: Database
) -> None:
    """No setting of the session limits a wait for a lock: polls have a connection.

    row locked | its result is being stored | another task is aborted | unlocked
    """
    with running_pgbouncer(dsn, "transaction") as bouncer:
        app = make_worker(bouncer.dsn)
        app.conf.aioabort_poll_interval = 0.1
        other = await begin(app)
        await to_thread.run_sync(app.backend.store_result, "held", 1, "PROGRESS")
        locks = await asyncpg.connect(dsn)
        async with locks.transaction():
            await locks.execute(ROW, "held")
            storing = asyncio.create_task(
                to_thread.run_sync(app.backend.store_result, "held", 2, "SUCCESS")
            )
            await until(lambda: is_locked_out(database, locks.get_server_pid()))
            await store.request_aborts([other.task_id])
            await until(lambda: other.aborted)
            assert not storing.done()
        await storing
        await locks.close()


@contextmanager
def latin1_database(server: Server) -> Iterator[str]:
    """A database that holds only the characters of Western Europe."""
    name = f"aioabort_{uuid4().hex}"
    create = sql.SQL(
        "CREATE DATABASE {} TEMPLATE template0 ENCODING 'LATIN1' "
        "LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(create.format(sql.Identifier(name)))
        try:
            yield server.dsn(name)
        finally:
            connection.execute(drop.format(sql.Identifier(name)))


@pytest.fixture
def latin1_dsn(server: Server) -> Iterator[str]:
    with latin1_database(server) as dsn:
        yield dsn


async def test_an_id_that_the_encoding_lacks(
    latin1_dsn: str, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """Its task runs, unwatched, and one waiter gets an error; no other notices.

    a task and a wait with such an id | aborts, ends and settles of others arrive
    """
    caplog.set_level(logging.WARNING, "aioabort")
    assert urlsplit(latin1_dsn).path
    await create_tables_async(latin1_dsn)
    app = make_app(latin1_dsn, aioabort_poll_interval=0.05)
    settings = read_settings(app)
    async with open_pool(settings.dsn, 2, settings.timing) as pool:
        store = await open_request_store(pool, settings)
        running = await begin(app)
        odd = await begin(app, "报告")
        await store.request_aborts([running.task_id])
        await until(lambda: running.aborted)
        assert not odd.aborted
    assert "task 报告 runs, but an abort of it cannot arrive: " in caplog.text
    assert len(caplog.records) == 1, caplog.text

    async with AbortClient(app) as client:
        waiting = await waiting_for(client, "good")
        with pytest.raises(StoreError, match="PostgreSQL refused"):
            await client.wait("报告", 10)
        [result] = [one async for one in client.as_completed(["报告"], timeout=10)]
        assert result.id == "报告"
        with pytest.raises(StoreError, match="The abort of '报告' was not requested"):
            await client.abort(["报告", "good"])
        assert await client.is_aborted("good")
        await end(app, "good", "value")
        with fail_after(15):
            assert await waiting == "value"
