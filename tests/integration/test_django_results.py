"""Results of django-celery-results, which clients and workers reach by asyncpg.

There is no worker here: a test stores results by the ORM, as a worker would.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest
from anyio import fail_after, to_thread
from celery import Celery, states
from celery.app.task import Context
from celery.contrib.abortable import AbortableAsyncResult
from celery.result import GroupResult

from aioabort import (
    AbortClient,
    InvalidRequest,
    StoreUnavailable,
    TaskAborted,
)
from aioabort.postgres.diagnostics import diagnose
from aioabort.postgres.request_store import RequestStore
from aioabort.settings import read_settings
from aioabort.timing import Timing
from aioabort.worker.execution.store_retry import store_with_retries
from aioabort.worker.final_state import restore_revoked, store_revoked
from tests.integration.steps import end_run, new_ids, start_run, waiting_for
from tests.support.apps import MakeApp
from tests.support.databases import Server, temporary_database
from tests.support.django_results import (
    END_CONNECTIONS,
    close_connection,
    end_by_orm,
    lead_django_to,
    migrate,
)
from tests.support.waiting import BOUND, until

Database: TypeAlias = "asyncpg.Connection[Any]"

TABLE = "django_celery_results_taskresult"
ROW = f"SELECT * FROM {TABLE} WHERE task_id = $1"
OUR_ROW = "SELECT * FROM aioabort_request WHERE task_id = $1"
ABORTED = TaskAborted("enough", None, "task")

#: Statements that wait for a lock of another transaction.
WAITING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


@pytest.fixture
def dsn(django_dsn: str) -> str:
    """A database with the tables of django-celery-results."""
    return django_dsn


@pytest.fixture
def app(dsn: str, make_app: MakeApp) -> Celery:
    """An app with its results in the ORM's database."""
    return make_app(dsn, result_backend="django-db", aioabort_dsn=dsn)


@pytest.fixture
async def elsewhere(server: Server, app: Celery) -> AsyncIterator[str]:
    """Another database, to which only aioabort_dsn leads."""
    with temporary_database(server) as dsn:
        app.conf.aioabort_dsn = dsn
        yield dsn


@pytest.fixture
async def watcher(dsn: str) -> AsyncIterator[Database]:
    """A connection that sees the sessions of now: a transaction sees those before it."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def by_orm(act: Callable[[], Any]) -> Any:
    """Return the result of *act*, called in a thread that then closes its connection."""

    def run() -> Any:
        try:
            return act()
        finally:
            close_connection()

    return await to_thread.run_sync(run)


async def test_a_task_without_a_row_gets_one_that_the_orm_uses(
    app: Celery, store: RequestStore, database: Database, task_id: str
) -> None:
    """Django's columns have no defaults, and the worker's states go into the same row."""
    await store.request_aborts([task_id], "why", "alice")
    row = await database.fetchrow(ROW, task_id)
    assert row is not None
    assert row["status"] == "ABORTED"
    for moment in ("date_created", "date_done"):
        assert abs(datetime.now(UTC) - row[moment]) < timedelta(minutes=5)
    meta = await by_orm(lambda: app.backend.get_task_meta(task_id, cache=False))
    assert (meta["status"], meta["result"]) == ("ABORTED", None)
    await end_by_orm(app, task_id, {"n": 1}, "PROGRESS")
    after = await database.fetchrow(ROW, task_id)
    assert after is not None
    assert (after["id"], after["status"]) == (row["id"], "PROGRESS")


async def test_what_the_row_says_besides_is_kept(
    app: Celery, store: RequestStore, database: Database, task_id: str
) -> None:
    """Only the status changes: name, worker, result and dates stay as they were."""
    app.conf.result_extended = True
    await end_by_orm(app, task_id, {"n": 1}, "PROGRESS", task="shop.report")
    before = await database.fetchrow(ROW, task_id)
    await store.request_aborts([task_id])
    after = await database.fetchrow(ROW, task_id)
    assert before is not None
    assert after is not None
    assert {**after, "status": "PROGRESS"} == dict(before)


@pytest.mark.parametrize("state", sorted(states.READY_STATES))
async def test_a_finished_task_is_not_changed(
    app: Celery, client: AbortClient, database: Database, task_id: str, state: str
) -> None:
    """It keeps its row, and gets no abort request."""
    result = "value" if state == states.SUCCESS else ValueError("x")
    await end_by_orm(app, task_id, result, state)
    before = await database.fetchrow(ROW, task_id)
    receipt = await client.abort(task_id)
    assert (receipt.answer, receipt.state) == ("finished", state)
    assert await database.fetchrow(ROW, task_id) == before
    assert await database.fetchrow(OUR_ROW, task_id) is None


async def test_the_end_and_the_abort_at_the_same_moment(
    app: Celery,
    store: RequestStore,
    database: Database,
    watcher: Database,
    task_id: str,
) -> None:
    """One statement changes both tables, under the lock of the result.

    worker: UPDATE … SUCCESS | abort: waits for the row | worker: COMMIT | abort: no
    """
    await end_by_orm(app, task_id, None, states.STARTED)
    async with asyncio.TaskGroup() as group, database.transaction():
        await database.execute(
            f"UPDATE {TABLE} SET status = 'SUCCESS' WHERE task_id = $1", task_id
        )
        request = group.create_task(store.request_aborts([task_id]))
        await until(lambda: watcher.fetchval(WAITING))
    assert request.result() == {}
    assert await database.fetchrow(OUR_ROW, task_id) is None


@pytest.mark.parametrize("serializer", ["json", "pickle"])
async def test_waiters_get_what_the_backend_decodes(
    app: Celery, serializer: str
) -> None:
    """Values and errors, in text and in bytes that are encoded as text."""
    app.conf.update(result_serializer=serializer, accept_content=["json", "pickle"])
    returned, failed = new_ids(2)
    async with AbortClient(app) as client:
        waiting = await waiting_for(client, returned)
        await end_by_orm(app, returned, {"größe": [1, None]})
        assert await waiting == {"größe": [1, None]}
        await end_by_orm(app, failed, ValueError("of the task"), states.FAILURE)
        with pytest.raises(ValueError, match="of the task"):
            await client.wait(failed)
        snapshot = await client.snapshot(returned)
    assert snapshot.result == {"größe": [1, None]}
    assert snapshot.date_done is not None
    assert abs(datetime.now(UTC) - snapshot.date_done) < timedelta(minutes=5)


async def test_a_large_result_is_fetched_in_parts(
    app: Celery, database: Database, task_id: str
) -> None:
    """The parts of a text begin and end at any of its bytes."""
    large = "1ü€" * 1_000_000
    await end_by_orm(app, task_id, "")
    # Celery's own serializers write ASCII, others do not.
    await database.execute(f"UPDATE {TABLE} SET result = $1", f'"{large}"')
    async with AbortClient(app) as client, asyncio.timeout(BOUND):
        assert await client.wait(task_id) == large
        assert (await client.snapshot(task_id)).result == large


async def test_a_snapshot_shows_how_far_the_abort_has_come(
    app: Celery, client: AbortClient, task_id: str
) -> None:
    """ABORTED between the abort and the end, then the end and the outcome."""
    run = await to_thread.run_sync(start_run, app, task_id)
    await end_by_orm(app, task_id, None, states.STARTED)
    receipt = await client.abort(task_id)
    assert (await client.snapshot(task_id)).state == "ABORTED"
    await until(lambda: run.aborted)
    assert await by_orm(
        lambda: store_revoked(app.backend, Context(id=task_id), ABORTED)
    )
    run.is_aborted()
    run.mark_honoured(has_result=False)
    end_run(run, states.IGNORED)
    assert await receipt.settled() == "aborted"
    snapshot = await client.snapshot(task_id)
    assert snapshot.state == states.REVOKED
    assert snapshot.request is not None
    assert snapshot.request.outcome == "aborted"


async def test_the_abort_of_another_program_becomes_a_request(
    app: Celery, client: AbortClient, task_id: str
) -> None:
    """Flower and celery.contrib.abortable only store ABORTED."""
    run = await to_thread.run_sync(start_run, app, task_id)
    celerys = AbortableAsyncResult(task_id, app=app)
    await by_orm(celerys.abort)
    with fail_after(BOUND):
        async for snapshot in client.watch(task_id):
            if snapshot.request is not None:
                break
    await until(lambda: run.aborted)


async def test_abort_where_finds_tasks_by_the_orms_columns(
    app: Celery, client: AbortClient
) -> None:
    """A task's name, its worker, and a moment before which it began."""
    app.conf.result_extended = True
    report, mail, ended = new_ids(3)
    running, done = states.STARTED, states.SUCCESS
    await end_by_orm(app, report, None, running, task="report", hostname="a@host")
    await end_by_orm(app, mail, None, running, task="mail", hostname="b@host")
    await end_by_orm(app, ended, None, done, task="report", hostname="a@host")
    [receipt] = await client.abort_where(task="report")
    assert receipt.task_id == report
    [receipt] = await client.abort_where(worker="b@host")
    assert receipt.task_id == mail
    now = datetime.now(UTC)
    assert await client.abort_where(before=now - timedelta(hours=1)) == []
    found = await client.abort_where(before=now + timedelta(hours=1))
    assert {receipt.task_id for receipt in found} == {report, mail}
    with pytest.raises(InvalidRequest, match="queue is no criterion"):
        await client.abort_where(queue="celery")


async def test_the_id_of_a_saved_group_is_refused(
    app: Celery, client: AbortClient
) -> None:
    """A group is no task, and an abort of its id would stop nothing."""
    [member] = new_ids(1)
    group = GroupResult("group", [app.AsyncResult(member)], app=app)
    await by_orm(lambda: group.save(app.backend))
    with pytest.raises(InvalidRequest, match="saved group"):
        await client.abort("group")


async def is_requested(client: AbortClient, task_id: str) -> bool:
    """Abort the task; return False if a connection was closed meanwhile."""
    try:
        return (await client.abort(task_id)).is_requested
    except StoreUnavailable:
        return False


async def test_a_client_outlives_its_connections(
    app: Celery, client: AbortClient, database: Database
) -> None:
    """A wait, an abort and a snapshot succeed after the server has closed all."""
    awaited, aborted = new_ids(2)
    waiting = await waiting_for(client, awaited)
    await database.fetchval(END_CONNECTIONS)
    await end_by_orm(app, awaited, 7)
    with fail_after(BOUND):
        assert await waiting == 7
        await until(lambda: is_requested(client, aborted))
        assert (await client.snapshot(aborted)).state == "ABORTED"


@pytest.mark.parametrize(
    ("state", "store"), [("STARTED", store_revoked), ("RETRY", restore_revoked)]
)
async def test_a_final_state_is_stored_on_a_new_connection(
    app: Celery, database: Database, task_id: str, state: str, store: Any
) -> None:
    """The worker's thread has a connection that the server has closed meanwhile."""
    loop = asyncio.get_running_loop()

    def store_after_the_connection_ended() -> Any:
        app.backend.store_result(task_id, None, state)
        ending = database.fetchval(END_CONNECTIONS)
        asyncio.run_coroutine_threadsafe(ending, loop).result(BOUND)
        return store(app.backend, Context(id=task_id), ABORTED)

    assert await by_orm(store_after_the_connection_ended)
    row = await database.fetchrow(ROW, task_id)
    assert row is not None
    assert row["status"] == states.REVOKED


async def test_a_dead_connection_is_replaced_between_two_tries(
    app: Celery, database: Database, task_id: str
) -> None:
    """A store that fails because of its connection succeeds with the next try."""
    loop = asyncio.get_running_loop()

    def store() -> int:
        timing = Timing(store_retry_give_up=5)
        return store_with_retries(app.backend, task_id, try_to_store, timing)

    tries: list[int] = []

    def try_to_store() -> int:
        tries.append(len(tries))
        if len(tries) == 1:
            app.backend.store_result(task_id, None, states.STARTED)
            ending = database.fetchval(END_CONNECTIONS)
            asyncio.run_coroutine_threadsafe(ending, loop).result(BOUND)
        app.backend.store_result(task_id, 7, states.SUCCESS)
        return len(tries)

    assert await by_orm(store) == 2


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "STARTED", None])
async def test_revoked_never_replaces_a_result(
    app: Celery,
    database: Database,
    watcher: Database,
    task_id: str,
    state: str | None,
) -> None:
    """The row's lock decides, for a row that is there and for one that comes.

    other run: stores its state, not committed | this run: waits to store REVOKED |
    other run: commits | this run: reads the state of the other run
    """
    if state is not None:
        await end_by_orm(app, task_id, None, states.STARTED)
    async with asyncio.TaskGroup() as group, database.transaction():
        if state is None:
            await database.execute(
                f"INSERT INTO {TABLE} (task_id, status, content_type, "
                "content_encoding, date_created, date_done)"
                "VALUES ($1, 'SUCCESS', '', '', now(), now())",
                task_id,
            )
        else:
            await database.execute(
                f"UPDATE {TABLE} SET status = $1 WHERE task_id = $2", state, task_id
            )
        context = Context(id=task_id)
        act = by_orm(lambda: store_revoked(app.backend, context, ABORTED))
        storing = group.create_task(act)
        await until(lambda: watcher.fetchval(WAITING))
    row = await database.fetchrow(ROW, task_id)
    assert row is not None
    assert storing.result() == (state == "STARTED")
    assert row["status"] == ("REVOKED" if state == "STARTED" else state or "SUCCESS")


async def test_a_task_without_a_row_ends_as_revoked(
    app: Celery, client: AbortClient, task_id: str
) -> None:
    """Without ``task_track_started``, the first state of a task is its end."""
    context = Context(id=task_id)
    assert await by_orm(lambda: store_revoked(app.backend, context, ABORTED))
    with pytest.raises(TaskAborted, match="enough"):
        await client.wait(task_id)


async def test_results_in_another_database_are_read_by_the_orm(
    app: Celery,
    dsn: str,
    elsewhere: str,
    caplog: pytest.LogCaptureFixture,
    task_id: str,
) -> None:
    """Nothing is written to a table of the same name there; the log says why, once."""
    await to_thread.run_sync(migrate, elsewhere)
    lead_django_to(dsn)
    with caplog.at_level(logging.WARNING, "aioabort"):
        for _ in range(2):
            async with AbortClient(app) as client:
                assert (await client.abort(task_id)).is_requested
        async with AbortClient(app) as client:
            await end_by_orm(app, task_id, 7)
            assert await client.wait(task_id, BOUND) == 7
    [line] = [line for line in caplog.messages if "result_backend" in line]
    assert "aioabort_dsn leads to another one" in line
    connection = await asyncpg.connect(elsewhere)
    try:
        assert await connection.fetchval(f"SELECT count(*) FROM {TABLE}") == 0
        assert await connection.fetchval("SELECT count(*) FROM aioabort_request") == 1
    finally:
        await connection.close()


@pytest.mark.usefixtures("elsewhere")
async def test_results_in_another_database_without_the_table(
    app: Celery, caplog: pytest.LogCaptureFixture, task_id: str
) -> None:
    """The requests are there, the results in Django's database."""
    with caplog.at_level(logging.WARNING, "aioabort"):
        async with AbortClient(app) as client:
            await client.abort(task_id)
            assert (await client.snapshot(task_id)).request is not None
    assert f"{TABLE} is not in" in caplog.text


async def test_tables_that_are_not_migrated(
    app: Celery, elsewhere: str, caplog: pytest.LogCaptureFixture, task_id: str
) -> None:
    """The log and doctor name the setting and the command; aborts are stored."""
    lead_django_to(elsewhere)
    with caplog.at_level(logging.WARNING, "aioabort"):
        async with AbortClient(app) as client:
            assert (await client.abort(task_id)).is_requested
    [line] = [line for line in caplog.messages if "not read" in line]
    assert "result_backend" in line
    assert f"no table {TABLE}: run manage.py migrate" in line
    diagnosis = await diagnose(read_settings(app))
    assert diagnosis.why_elsewhere is not None


async def test_a_database_of_django_that_is_away(app: Celery, server: Server) -> None:
    """The client does not guess where the results are."""
    lead_django_to(server.dsn("no_such_database"))
    with pytest.raises(StoreUnavailable, match="no_such_database"):
        async with AbortClient(app):
            pass
