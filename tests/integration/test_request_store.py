"""The statements on a real PostgreSQL, and the races that they decide."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from uuid import uuid4

import asyncpg
import pytest
from anyio import fail_after
from celery import Celery, states

from aioabort import AbortRequest, StoreError
from aioabort.postgres.connection import connect
from aioabort.postgres.pool import open_pool
from aioabort.postgres.request_store import RequestStore, open_request_store
from aioabort.settings import read_settings
from aioabort.timing import Timing
from tests.integration.steps import end
from tests.support.waiting import until

Database: TypeAlias = "asyncpg.Connection[Any]"

CELERY_ROW = "SELECT * FROM celery_taskmeta WHERE task_id = $1"
OUR_ROW = "SELECT * FROM aioabort_request WHERE task_id = $1"

#: Statements that wait for a lock of another transaction.
WAITING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


async def somebody_waits(database: Database) -> None:
    """Return when a statement waits for a lock."""
    await until(lambda: database.fetchval(WAITING))


async def test_a_task_without_a_row_gets_one(
    store: RequestStore, database: Database, task_id: str
) -> None:
    """A queued task becomes ABORTED, with a date by which Celery cleans it up."""
    requests = await store.request_aborts([task_id], "why", "alice")
    row = await database.fetchrow(CELERY_ROW, task_id)
    assert row is not None
    assert row["status"] == "ABORTED"
    age = datetime.now(UTC) - row["date_done"].replace(tzinfo=UTC)
    assert abs(age) < timedelta(minutes=5)
    assert requests[task_id].reason == "why"
    assert requests[task_id].requested_by == "alice"
    ours = await database.fetchrow(OUR_ROW, task_id)
    assert ours is not None
    assert ours["expires_at"] - ours["requested_at"] > timedelta(days=29)


async def test_celery_goes_on_with_the_row_that_abort_made(
    app: Celery, store: RequestStore, task_id: str
) -> None:
    """Celery updates our row as if it were its own: same columns, same sequence."""
    await store.request_aborts([task_id])
    await end(app, task_id, {"n": 1}, "PROGRESS")
    other = str(uuid4())
    await end(app, other, 2, states.SUCCESS)
    results = [app.AsyncResult(id_).result for id_ in (task_id, other)]
    assert results == [{"n": 1}, 2]


async def test_what_celery_knows_of_a_task_is_kept(
    store: RequestStore, database: Database, task_id: str
) -> None:
    """Only the status changes: name, arguments, worker, result stay as they were."""
    await database.execute(
        "ALTER TABLE celery_taskmeta ADD COLUMN IF NOT EXISTS name varchar(155), "
        "ADD COLUMN IF NOT EXISTS args bytea"
    )
    await database.execute(
        "INSERT INTO celery_taskmeta (id, task_id, status, result, name, args)"
        "VALUES (1000, $1, 'PROGRESS', $2, 'proj.index', $3)",
        task_id,
        b'{"n": 1}',
        b"[1]",
    )
    before = await database.fetchrow(CELERY_ROW, task_id)
    await store.request_aborts([task_id])
    after = await database.fetchrow(CELERY_ROW, task_id)
    assert before is not None
    assert after is not None
    assert {**after, "status": "PROGRESS"} == dict(before)


@pytest.mark.parametrize("state", sorted(states.READY_STATES))
async def test_a_finished_task_is_not_changed(
    app: Celery, store: RequestStore, database: Database, task_id: str, state: str
) -> None:
    """The row of a task that has ended stays unchanged, and gets no abort request."""
    result = "value" if state == states.SUCCESS else ValueError("x")
    await end(app, task_id, result, state)
    before = await database.fetchrow(CELERY_ROW, task_id)
    assert await store.request_aborts([task_id]) == {}
    assert await database.fetchrow(CELERY_ROW, task_id) == before
    assert await database.fetchrow(OUR_ROW, task_id) is None


async def test_the_first_request_stays(store: RequestStore, task_id: str) -> None:
    """A second request changes neither reason nor name."""
    await store.request_aborts([task_id], "first", "alice")
    assert await store.request_aborts([task_id], "second", "bob") == {}
    request = (await store.read_aborts([task_id]))[task_id].request
    assert request is not None
    assert (request.reason, request.requested_by) == ("first", "alice")


async def test_a_task_that_finishes_first_keeps_its_result(
    store: RequestStore, database: Database, app: Celery, task_id: str
) -> None:
    """The end of a task and a request at the same instant: the end came first.

    worker: UPDATE … SUCCESS | abort: waits for the row | worker: COMMIT | abort: no
    """
    await end(app, task_id, None, states.STARTED)
    async with asyncio.TaskGroup() as group, database.transaction():
        await database.execute(
            "UPDATE celery_taskmeta SET status = 'SUCCESS' WHERE task_id = $1",
            task_id,
        )
        request = group.create_task(store.request_aborts([task_id]))
        await somebody_waits(database)
    assert request.result() == {}
    assert await database.fetchrow(OUR_ROW, task_id) is None


async def test_a_result_that_is_rolled_back_does_not_stop_a_request(
    store: RequestStore, database: Database, app: Celery, task_id: str
) -> None:
    """A worker whose store fails has not finished, and the request holds.

    worker: UPDATE … SUCCESS | abort: waits | worker: ROLLBACK | abort: yes
    """
    await end(app, task_id, None, states.STARTED)
    async with asyncio.TaskGroup() as group:
        transaction = database.transaction()
        await transaction.start()
        await database.execute(
            "UPDATE celery_taskmeta SET status = 'SUCCESS' WHERE task_id = $1", task_id
        )
        request = group.create_task(store.request_aborts([task_id]))
        await somebody_waits(database)
        await transaction.rollback()
    assert task_id in request.result()


@pytest.mark.parametrize("has_row", [True, False])
async def test_a_request_that_comes_first_survives_the_result(
    app: Celery, database: Database, task_id: str, has_row: bool
) -> None:
    """The end of a task and a request at the same instant: the request came first.

    abort: row ABORTED | worker: SUCCESS waits for the row | abort: COMMIT | worker:
    SUCCESS stored. Without a row, the worker's INSERT waits and then fails as a
    duplicate, and Celery tries again.
    """
    if has_row:
        await end(app, task_id, None, states.STARTED)
    async with connect(read_settings(app).dsn, Timing()) as link:
        store = await open_request_store(link, read_settings(app))
        async with asyncio.TaskGroup() as group, link.asyncpg_connection.transaction():
            assert task_id in await store.request_aborts([task_id])
            stored = group.create_task(end(app, task_id, "value", states.SUCCESS))
            await somebody_waits(database)
        await stored
        row = (await store.read_aborts([task_id]))[task_id]
    assert row.state == "SUCCESS"
    assert row.request is not None
    assert row.request.is_pending


async def test_overlapping_requests_do_not_deadlock(
    store: RequestStore, database: Database
) -> None:
    """Many clients abort the same tasks in opposite orders; each is requested once."""
    ids = [str(uuid4()) for _ in range(500)]
    with fail_after(60):
        answers = await asyncio.gather(
            *(
                store.request_aborts(ids[:: 1 if number % 2 else -1])
                for number in range(12)
            )
        )
    assert sorted(id_ for answer in answers for id_ in answer) == sorted(ids)
    assert await database.fetchval("SELECT count(*) FROM aioabort_request") == len(ids)


async def test_a_settled_request_can_be_made_anew(
    store: RequestStore, task_id: str
) -> None:
    """An id that is published again can be aborted again, without the old traces."""
    first = (await store.request_aborts([task_id], "first"))[task_id]
    await store.record_seen([first], [0.0], "node")
    await store.record_outcomes([first], ["returned"], [0.0])
    again = (await store.request_aborts([task_id], "again"))[task_id]
    assert again.requested_at > first.requested_at
    assert again.is_pending
    assert (again.reason, again.seen_at, again.outcome_at) == ("again", None, None)


async def test_a_late_report_does_not_settle_a_newer_request(
    store: RequestStore, task_id: str
) -> None:
    """The report of an earlier run does not change a later abort request.

    run 1 ends, its report waits | settled elsewhere | requested anew | report of run 1
    """
    first = (await store.request_aborts([task_id]))[task_id]
    await store.record_outcomes([first], ["returned"], [0.0])
    again = (await store.request_aborts([task_id]))[task_id]
    await store.record_seen([first], [0.0], "node")
    await store.record_outcomes([first], ["failed"], [0.0])
    assert (await store.read_aborts([task_id]))[task_id].request == again


async def test_the_first_report_stays(store: RequestStore, task_id: str) -> None:
    """Two runs of the same id report; the first record stays."""
    request = (await store.request_aborts([task_id]))[task_id]
    await store.record_seen([request], [2.0], "first")
    await store.record_seen([request], [0.0], "second")
    await store.record_outcomes([request], ["aborted"], [1.0])
    await store.record_outcomes([request], ["returned"], [0.0])
    settled = (await store.read_aborts([task_id]))[task_id].request
    assert settled is not None
    assert (settled.seen_by, settled.outcome) == ("first", "aborted")
    assert settled.seen_at is not None
    assert settled.outcome_at is not None
    assert settled.seen_at < settled.outcome_at


async def test_only_what_concerns_a_worker_is_observed(
    app: Celery, store: RequestStore
) -> None:
    """Rows are returned for abort requests and for ABORTED of other programs only."""
    asked, flower, running, unknown = (str(uuid4()) for _ in range(4))
    await store.request_aborts([asked])
    await end(app, flower, None, "ABORTED")
    await end(app, running, None, states.STARTED)
    rows = await store.read_aborts([asked, flower, running, unknown])
    assert set(rows) == {asked, flower}
    assert isinstance(rows[asked].request, AbortRequest)
    assert rows[flower].request is None


async def test_ended_are_the_stored_and_those_that_store_nothing(
    app: Celery, store: RequestStore
) -> None:
    """A result ends a task; so does a settled request where no result is stored."""
    success, silent, aborting, progress, unknown = (str(uuid4()) for _ in range(5))
    await end(app, success, 1, states.SUCCESS)
    await end(app, progress, {}, "PROGRESS")
    requests = await store.request_aborts([silent, aborting])
    await store.record_outcomes([requests[silent]], ["returned"], [0.0])
    rows = await store.read_for_waiters(
        [success, silent, aborting, progress, unknown], []
    )
    assert set(rows) == {success, silent}


async def test_a_close_look_finds_more_than_ends(
    app: Celery, store: RequestStore
) -> None:
    """One statement reads the ends of awaited tasks and all changes of watched tasks."""
    running, ended, progress, unknown = (str(uuid4()) for _ in range(4))
    await end(app, running, None, states.STARTED)
    await end(app, ended, 1, states.SUCCESS)
    await end(app, progress, {"n": 1}, "PROGRESS")
    rows = await store.read_for_waiters([running, ended], [progress, unknown])
    assert {task_id: row.state for task_id, row in rows.items()} == {
        ended: "SUCCESS",
        progress: "PROGRESS",
        unknown: None,
    }


async def test_the_tables_are_created_once_by_whoever_is_first(
    app_on_empty: Celery,
) -> None:
    """Many processes that start at once on a new database all succeed.

    A: is there a table? no | B: is there a table? no | A: CREATE | B: CREATE
    """
    settings = read_settings(app_on_empty)

    async def start() -> bool:
        async with open_pool(settings.dsn, 1, settings.timing) as pool:
            store = await open_request_store(pool, settings)
            return bool(await store.request_aborts(["same"]))

    with fail_after(60):
        created = await asyncio.gather(*(start() for _ in range(10)))
    assert sum(created) == 1


@pytest.fixture
def app_on_empty(empty_dsn: str, make_app: Callable[..., Celery]) -> Celery:
    return make_app(empty_dsn)


async def test_a_missing_table_is_named(
    empty_dsn: str, make_app: Callable[..., Celery]
) -> None:
    """If aioabort must not create tables, the error names the missing one."""
    settings = read_settings(make_app(empty_dsn, aioabort_create_tables=False))
    async with connect(settings.dsn, settings.timing) as connection:
        with pytest.raises(StoreError, match=r"aioabort_request.*is missing"):
            await open_request_store(connection, settings)
        tables = await connection.fetch(
            "SELECT FROM pg_tables WHERE schemaname = 'public'"
        )
    assert tables == []


async def test_a_role_without_rights_writes_nothing(
    app: Celery, database: Database, task_id: str
) -> None:
    """Rights on Celery's table alone: the error names ours, and nothing is half done."""
    role = f"aioabort_{uuid4().hex}"
    await database.execute(
        f"CREATE ROLE {role}; GRANT ALL ON celery_taskmeta, task_id_sequence TO {role}"
    )
    try:
        settings = read_settings(app)
        async with connect(settings.dsn, settings.timing) as connection:
            store = await open_request_store(connection, settings)
            await connection.execute(f"SET ROLE {role}")
            with pytest.raises(StoreError, match="denied for table aioabort_request"):
                await store.request_aborts([task_id])
    finally:
        await database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert await database.fetchrow(CELERY_ROW, task_id) is None


async def test_names_of_tables_are_quoted(
    dsn: str, database: Database, make_app: Callable[..., Celery]
) -> None:
    """Schemas and tables may have any name; it is never taken for SQL."""
    schema, table = 'Odd "schema"', "Tasks'; DROP TABLE celery_taskmeta; --"
    await database.execute('CREATE SCHEMA "Odd ""schema"""')
    await database.execute(
        'CREATE SEQUENCE "Odd ""schema""".task_id_sequence;'
        'CREATE TABLE "Odd ""schema"""."Tasks\'; DROP TABLE celery_taskmeta; --"'
        "(LIKE celery_taskmeta INCLUDING ALL)"
    )
    app = make_app(
        dsn,
        database_table_names={"task": table},
        database_table_schemas={"task": schema},
    )
    settings = read_settings(app)
    async with connect(settings.dsn, settings.timing) as connection:
        store = await open_request_store(connection, settings)
        assert store.has_results
        assert "id" in await store.request_aborts(["id"])
        assert (await store.read_snapshots(["id"]))["id"].state == "ABORTED"
    assert await database.fetchval("SELECT count(*) FROM celery_taskmeta") == 0


async def test_without_celerys_table_requests_stand_alone(
    empty_dsn: str, make_app: Callable[..., Celery]
) -> None:
    """Without Celery's results in PostgreSQL, there is only the request table."""
    app = make_app(empty_dsn, aioabort_dsn=empty_dsn, result_backend="cache+memory://")
    app.backend_cls = None
    settings = read_settings(app)
    async with connect(settings.dsn, settings.timing) as connection:
        store = await open_request_store(connection, settings)
        assert not store.has_results
        assert set(await store.request_aborts(["a", "b", "a"], "why")) == {"a", "b"}
        assert await store.request_aborts(["a"]) == {}
        request = (await store.read_aborts(["a"]))["a"].request
    assert request is not None
    assert request.reason == "why"


@pytest.mark.parametrize("notify", [True, False])
async def test_hints_go_out_if_they_are_wanted(
    dsn: str, database: Database, make_app: Callable[..., Celery], notify: bool
) -> None:
    """Notifications name the ids on two channels, or are not sent at all."""
    heard: asyncio.Queue[tuple[str, object]] = asyncio.Queue()
    settings = read_settings(make_app(dsn, aioabort_notify=notify))
    async with connect(settings.dsn, settings.timing) as connection:
        store = await open_request_store(connection, settings)

        def listen(_c: Any, _pid: int, channel: str, payload: object) -> None:
            heard.put_nowait((channel, payload))

        for channel in (store.request_channel, store.done_channel, "end"):
            await database.add_listener(channel, listen)
        await store.notify_workers(["a", "b"])
        await store.notify_clients(["c"])
        await connection.execute('NOTIFY "end"')
        with fail_after(5):
            messages = [await heard.get()]
            while messages[-1][0] != "end":
                messages.append(await heard.get())
    expected = [(store.request_channel, "1:a,b"), (store.done_channel, "1:c")]
    assert messages[:-1] == (expected if notify else [])


async def test_apps_with_tables_of_their_own_do_not_share_requests(
    dsn: str, store: RequestStore, make_app: Callable[..., Celery]
) -> None:
    """The same id in two apps, such as "nightly", is two tasks."""
    other = make_app(dsn, aioabort_dsn=dsn, database_table_names={"task": "other"})
    settings = read_settings(other)
    async with connect(settings.dsn, settings.timing) as connection:
        others = await open_request_store(connection, settings)
        assert "nightly" in await store.request_aborts(["nightly"])
        assert await others.read_aborts(["nightly"]) == {}
        assert "nightly" in await others.request_aborts(["nightly"])
        indexes = await connection.fetch(
            "SELECT FROM pg_indexes WHERE indexname LIKE '%at'"
        )
    assert len(indexes) >= 2


async def test_a_request_that_nobody_saw_stays_unseen(
    store: RequestStore, task_id: str
) -> None:
    """A task that ends without seeing its request has no seen_at."""
    request = (await store.request_aborts([task_id]))[task_id]
    await store.record_outcomes([request], ["too_late"], [0.0])
    settled = (await store.read_aborts([task_id]))[task_id].request
    assert settled is not None
    assert (settled.outcome, settled.seen_at) == ("too_late", None)
