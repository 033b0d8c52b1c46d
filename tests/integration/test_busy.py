"""Locks and conflicts delay: they end no wait, and nothing that is to be recorded is lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias
from uuid import uuid4

import asyncpg
import pytest
from anyio import fail_after, to_thread
from celery import Celery
from celery.app.task import Context

from aioabort import (
    AbortableTask,
    AbortClient,
    AbortRequest,
    StoreBusy,
    StoreError,
    WaitTimeout,
)
from aioabort.postgres.request_store import RequestStore
from aioabort.timing import Timing
from aioabort.worker.main_process.recorder import EndedTask, recorder
from tests.integration.steps import end, end_run, new_ids, start_run, waiting_for
from tests.support.apps import MakeApp
from tests.support.waiting import until

Database: TypeAlias = "asyncpg.Connection[Any]"

#: How often sessions of this database wait for a lock.
WAITING_FOR_LOCKS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


@pytest.fixture
async def locks(dsn: str) -> AsyncIterator[Database]:
    """A connection of another program, which holds locks."""
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


@asynccontextmanager
async def locked(locks: Database, statement: str, *args: object) -> AsyncIterator[None]:
    """Hold the locks of *statement* in the block."""
    async with locks.transaction():
        await locks.execute(statement, *args)
        yield


async def set_default(database: Database, setting: str, value: str) -> None:
    """Set *setting* for the sessions of this database that begin later."""
    name = await database.fetchval("SELECT current_database()")
    await database.execute(f"ALTER DATABASE {name} SET {setting} = '{value}'")


@pytest.fixture
async def hasty_app(dsn: str, make_app: MakeApp, database: Database) -> Celery:
    """An app whose sessions wait 50 ms for a lock."""
    await set_default(database, "lock_timeout", "50ms")
    timing = Timing(busy_timeout=0.2)
    return make_app(dsn, aioabort_poll_interval=0.1, aioabort_timing=timing)


async def request_of(store: RequestStore, task_id: str) -> AbortRequest:
    """Return the abort request of the task."""
    request = (await store.read_aborts([task_id]))[task_id].request
    assert request is not None
    return request


LOCK_RESULTS = "LOCK TABLE celery_taskmeta IN ACCESS EXCLUSIVE MODE"


async def test_a_lock_ends_no_wait(
    hasty_app: Celery, app: Celery, locks: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """A migration that locks Celery's table delays waits, and one warning says why.

    wait, gather, as_completed | table locked | polls time out | unlocked | tasks end
    """
    caplog.set_level("INFO", "aioabort")
    one, two, three = ids = new_ids(3)
    async with AbortClient(hasty_app) as client:

        async def completed() -> Any:
            return [await one async for one in client.as_completed([three])]

        waits = [
            await waiting_for(client, one),
            asyncio.create_task(client.gather([two])),
            asyncio.create_task(completed()),
        ]
        async with locked(locks, LOCK_RESULTS):
            await until(
                lambda: "PostgreSQL is busy: " in (client.health().last_error or "")
            )
            assert not client.health().is_connected
        for task_id in ids:
            await end(app, task_id, "value")
        with fail_after(15):
            assert await asyncio.gather(*waits) == ["value", ["value"], ["value"]]
        await until(lambda: client.health().is_connected)
    warnings = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "aioabort client: PostgreSQL is busy: " in warnings[0]


async def test_abort_says_that_postgresql_is_busy(
    hasty_app: Celery, locks: Database, task_id: str
) -> None:
    """A row that stays locked: StoreBusy, which a web application answers as 503."""
    async with AbortClient(hasty_app) as client:
        await client.abort(task_id)
        row = "SELECT FROM celery_taskmeta WHERE task_id = $1 FOR UPDATE"
        async with locked(locks, row, task_id):
            with pytest.raises(StoreBusy, match=r"^PostgreSQL is busy: .*lock timeout"):
                await client.abort(task_id)
        assert (await client.abort(task_id)).answer == "requested_before"


async def test_a_silent_lock_is_told_from_a_silent_server(
    dsn: str, make_app: MakeApp, locks: Database, task_id: str
) -> None:
    """Without a lock_timeout our own timeout ends the statement, and the server answers."""
    app = make_app(dsn, aioabort_timing=Timing(statement_timeout=0.2))
    async with asyncpg.create_pool(dsn) as pool, AbortClient(app, pool=pool) as client:
        await client.abort(task_id)
        row = "SELECT FROM celery_taskmeta WHERE task_id = $1 FOR UPDATE"
        async with locked(locks, row, task_id):
            with pytest.raises(StoreBusy, match=r"took more than 0\.2 s"):
                await client.abort(task_id)
        # The connection is as good as before.
        assert (await client.abort(task_id)).answer == "requested_before"


async def test_a_short_lock_only_delays_an_abort(
    hasty_app: Celery, locks: Database, database: Database, task_id: str
) -> None:
    """It is tried again until the row is free.

    row locked | abort() waits for it, times out | unlocked | abort() tries again
    """
    hasty_app.conf.aioabort_timing = Timing(busy_timeout=30.0)
    async with AbortClient(hasty_app) as client:
        await client.abort(task_id)
        await database.execute("UPDATE aioabort_request SET outcome = 'returned'")
        row = "SELECT FROM celery_taskmeta WHERE task_id = $1 FOR UPDATE"
        async with locked(locks, row, task_id):
            aborting = asyncio.create_task(client.abort(task_id))
            await until(lambda: database.fetchval(WAITING_FOR_LOCKS))
            await until(lambda: is_free(database))
        with fail_after(15):
            assert (await aborting).answer == "requested"


async def is_free(database: Database) -> bool:
    return not await database.fetchval(WAITING_FOR_LOCKS)


async def test_one_locked_row_does_not_hold_up_a_bulk_abort(
    hasty_app: Celery, locks: Database, store: RequestStore
) -> None:
    """The other tasks are asked to stop, and the error names the one that is not."""
    ids = new_ids(20)
    hasty_app.conf.aioabort_timing = Timing()
    await store.request_aborts([ids[7]])
    async with AbortClient(hasty_app) as client:
        row = "SELECT FROM celery_taskmeta WHERE task_id = $1 FOR UPDATE"
        async with locked(locks, row, ids[7]):
            with pytest.raises(StoreBusy, match=f"The abort of '{ids[7]}' was not"):
                await client.abort(ids)
    assert sorted(await store.read_aborts(ids)) == sorted(ids)


REFUSE_ONE = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'not this one'; END $$;
    CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON aioabort_request
    FOR EACH ROW WHEN (NEW.task_id = 'bad') EXECUTE FUNCTION refuse();
"""


async def test_one_refused_task_does_not_refuse_a_bulk_abort(
    client: AbortClient, database: Database, store: RequestStore
) -> None:
    """Only the culprit is not asked to stop."""
    await database.execute(REFUSE_ONE)
    ids = new_ids(20)
    with pytest.raises(StoreError, match=r"The abort of 'bad' was not.*not this one"):
        await client.abort([*ids[:11], "bad", *ids[11:]])
    assert sorted(await store.read_aborts([*ids, "bad"])) == sorted(ids)
    with pytest.raises(StoreError, match=r"^PostgreSQL refused: not this one"):
        await client.abort("bad")


async def test_as_completed_does_not_keep_a_refusal(
    client: AbortClient, app: Celery, database: Database, task_id: str
) -> None:
    """Awaiting the yielded result asks again: the reason may be gone by then.

    the table has another name | yielded | the name is back, the task ends | awaited
    """
    await database.execute("ALTER TABLE celery_taskmeta RENAME TO other")
    async for result in client.as_completed([task_id]):
        await database.execute("ALTER TABLE other RENAME TO celery_taskmeta")
        await end(app, task_id, "value")
        with fail_after(15):
            assert await result.wait() == "value"


async def test_what_a_lock_delays_is_recorded_later(
    hasty_app: Celery,
    store: RequestStore,
    locks: Database,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A locked request drops neither seen nor outcome, and delays no other task's.

    two requests, one locked | both seen, both return | the free one is recorded |
    unlocked | the other is recorded
    """
    held, free = [await to_thread.run_sync(start_run, hasty_app) for _ in range(2)]
    await store.request_aborts([held.task_id, free.task_id])
    await until(lambda: held.aborted and free.aborted)
    row = "SELECT FROM aioabort_request WHERE task_id = $1 FOR UPDATE"

    async def outcome_of(task_id: str) -> str | None:
        return (await request_of(store, task_id)).outcome

    async with locked(locks, row, held.task_id):
        for run in (held, free):
            assert run.is_aborted()
            end_run(run)
        assert await until(lambda: outcome_of(free.task_id)) == "returned"
        await until(lambda: "abort outcomes are not recorded yet" in caplog.text)
        assert await outcome_of(held.task_id) is None
    assert await until(lambda: outcome_of(held.task_id)) == "returned"

    for run in (held, free):
        assert (await request_of(store, run.task_id)).seen_by == run.node
    # The connection was kept.
    assert "PostgreSQL is" not in caplog.text.replace("again: PostgreSQL is busy", "")


async def test_the_main_process_records_what_is_not_locked(
    app: Celery, store: RequestStore, locks: Database
) -> None:
    """Two children were killed, and the request of one is locked: both are recorded.

    one request locked | recorded: the other one | unlocked | recorded: that one
    """

    @app.task(base=AbortableTask, shared=False)
    def task() -> None: ...

    await store.request_aborts(["held", "free"])

    async def outcome_of(task_id: str) -> str | None:
        return (await request_of(store, task_id)).outcome

    row = "SELECT FROM aioabort_request WHERE task_id = $1 FOR UPDATE"
    async with locked(locks, row, "held"):
        for task_id in ("held", "free"):
            recorder.record(EndedTask(task, Context(id=task_id), "killed"))
        assert await until(lambda: outcome_of("free")) == "killed"
        assert await outcome_of("held") is None
    assert await until(lambda: outcome_of("held")) == "killed"
    assert await to_thread.run_sync(recorder.wait, 15)


async def test_a_lock_delays_no_start_and_keeps_the_connection(
    hasty_app: Celery,
    store: RequestStore,
    locks: Database,
    database: Database,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While no poll succeeds, tasks start without it, and are aborted afterwards.

    run | table locked, polls time out | another begins | unlocked | both are aborted
    """
    running = await to_thread.run_sync(start_run, hasty_app)
    pids = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%kill_in%' AND pid <> $1"
    own = await database.fetchval("SELECT pg_backend_pid()")
    before = await database.fetch(pids, own)
    async with locked(locks, LOCK_RESULTS):
        await until(lambda: "worker: PostgreSQL is busy" in caplog.text)
        with fail_after(3):
            starting = await to_thread.run_sync(start_run, hasty_app)
    ids = [running.task_id, starting.task_id]
    await store.request_aborts(ids)
    await until(lambda: running.aborted and starting.aborted)
    after = await database.fetch(pids, own)
    assert set(before) & set(after)


async def test_settled_waits_while_the_outcome_cannot_be_recorded(
    hasty_app: Celery, app: Celery, locks: Database, database: Database
) -> None:
    """A task that returned is not ``too_late`` because its worker has to wait.

    the request is locked | SUCCESS stored, the worker waits to record the outcome |
    settle timeout, twice | unlocked | recorded
    """
    hasty_app.conf.aioabort_timing = Timing(busy_timeout=0.1, settle_timeout=1.0)
    async with AbortClient(hasty_app) as client:
        receipt = await client.abort("id")
        row = "SELECT FROM aioabort_request WHERE task_id = $1 FOR UPDATE"
        async with locked(locks, row, "id"):
            recording = asyncio.create_task(
                database.execute("UPDATE aioabort_request SET outcome = 'returned'")
            )
            await end(app, "id", "value")
            with pytest.raises(WaitTimeout):
                await receipt.settled(timeout=2.5)
            settling = asyncio.create_task(receipt.settled())
        await recording
        with fail_after(15):
            assert await settling == "returned"


async def test_settled_is_derived_if_no_worker_records(
    dsn: str, make_app: MakeApp, app: Celery, task_id: str
) -> None:
    """Nothing is in the way of a worker, and none records: the task did not see it."""
    impatient = make_app(dsn, aioabort_timing=Timing(settle_timeout=0.1))
    async with AbortClient(impatient) as client:
        receipt = await client.abort(task_id)
        await end(app, task_id, "value")
        with fail_after(15):
            assert await receipt.settled() == "too_late"


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_conflicts_fail_no_abort(
    dsn: str, make_app: MakeApp, database: Database, level: str
) -> None:
    """The database's default isolation has concurrent statements fail; none is lost.

    Tasks report progress | 1,000 aborts of 40 tasks, 20 at a time, and bulk aborts
    """
    await set_default(database, "default_transaction_isolation", level)
    ids = [str(uuid4()) for _ in range(40)]
    stopped = asyncio.Event()

    async def report_progress(part: list[str]) -> None:
        connection = await asyncpg.connect(dsn)
        while not stopped.is_set():
            for task_id in part:
                try:
                    await connection.execute(
                        "UPDATE celery_taskmeta SET status = 'PROGRESS' "
                        "WHERE task_id = $1",
                        task_id,
                    )
                except asyncpg.SerializationError:
                    continue
        await connection.close()

    async with AbortClient(make_app(dsn)) as client:
        await client.abort(ids)

        async def abort(number: int) -> None:
            for task_id in ids[number::2] + ids[1 - number :: 2]:
                await client.abort(task_id)

        async with asyncio.TaskGroup() as group:
            for part in (ids[:20], ids[20:]):
                group.create_task(report_progress(part))
            async with asyncio.TaskGroup() as aborts:
                for number in range(25):
                    aborts.create_task(abort(number % 2))
                aborts.create_task(client.abort(ids[::-1]))
            stopped.set()
    assert await database.fetchval("SELECT count(*) FROM aioabort_request") == 40
