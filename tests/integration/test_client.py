"""The client: what it answers, how it waits, and what it does when PostgreSQL is away.

There is no worker here: a test stores results as a worker would.
"""

import asyncio
import gc
import logging
import pickle
import weakref
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
from anyio import fail_after, to_thread
from celery import Celery, states
from celery.exceptions import ImproperlyConfigured, TaskRevokedError
from celery.local import Proxy

from aioabort import (
    AbortableAsyncResult,
    AbortClient,
    AioabortError,
    ClientClosed,
    InvalidRequest,
    ResultMissing,
    StoreError,
    StoreUnavailable,
    TaskAborted,
    WaitTimeout,
)
from aioabort.models import Outcome
from aioabort.postgres.request_store import RequestStore
from tests.integration.steps import (
    CONNECTIONS,
    are_awaited,
    end,
    listening,
    waiting_for,
)
from tests.support.apps import MakeApp
from tests.support.databases import query_dicts
from tests.support.network import Network
from tests.support.waiting import BOUND, NEVER_POLLED, until


async def test_a_value_is_returned(
    app: Celery, client: AbortClient, task_id: str
) -> None:
    """What the task returned is what ``wait()`` and ``await`` return."""
    await end(app, task_id, {"n": [1, None]}, states.SUCCESS)
    with fail_after(5):
        assert await client.wait(task_id) == {"n": [1, None]}
        assert await client.result(task_id) == {"n": [1, None]}


async def test_the_error_of_the_task_is_raised(
    app: Celery, client: AbortClient, task_id: str
) -> None:
    """A failure raises the task's own exception, of its own class."""
    await end(app, task_id, KeyError("k"), states.FAILURE)
    with fail_after(5), pytest.raises(KeyError, match="k"):
        await client.wait(task_id)


async def test_an_abort_is_raised_with_reason_and_name(
    app: Celery, client: AbortClient, task_id: str
) -> None:
    """Who awaits an aborted task learns who aborted it, and why."""
    await end(app, task_id, TaskAborted("why", "alice", task_id), states.REVOKED)
    with fail_after(5), pytest.raises(TaskAborted) as caught:
        await client.wait(task_id)
    assert (caught.value.reason, caught.value.requested_by) == ("why", "alice")


async def test_a_revoked_task_is_no_aborted_one(
    app: Celery, client: AbortClient, task_id: str
) -> None:
    """Celery's own revoke keeps its own error."""
    await end(app, task_id, TaskRevokedError("expired"), states.REVOKED)
    with fail_after(5), pytest.raises(TaskRevokedError) as caught:
        await client.wait(task_id)
    assert not isinstance(caught.value, TaskAborted)
    assert not await client.is_aborted(task_id)


async def test_moments_are_right_whatever_the_servers_time_zone(
    dsn: str,
    make_app: MakeApp,
    database: "asyncpg.Connection[Any]",
    task_id: str,
) -> None:
    """Celery's column has no time zone; what it stores is the server's local time."""
    name = urlsplit(dsn).path[1:]
    await database.execute(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
    app = make_app(dsn)
    await end(app, task_id, 1, states.SUCCESS)
    async with AbortClient(app) as client:
        asked = str(uuid4())
        await client.abort(asked)
        moments = [(await client.snapshot(each)).date_done for each in (task_id, asked)]
    for moment in moments:
        assert moment is not None
        assert abs(datetime.now(UTC) - moment) < timedelta(minutes=1)


async def test_an_undecodable_result_is_an_error_of_that_task_alone(
    app: Celery, client: AbortClient, database: "asyncpg.Connection[Any]", task_id: str
) -> None:
    """A payload that Celery would refuse is refused; other waiters are not harmed."""
    other = str(uuid4())
    await database.execute(
        "INSERT INTO celery_taskmeta (id, task_id, status, result)"
        "VALUES (1000, $1, 'SUCCESS', 'no json')",
        task_id,
    )
    await end(app, other, 1, states.SUCCESS)
    bad, good = client.wait(task_id), client.wait(other)
    with fail_after(5):
        answers = await asyncio.gather(bad, good, return_exceptions=True)
    assert isinstance(answers[0], Exception)
    assert answers[1] == 1


async def test_a_notification_ends_the_wait(
    dsn: str, make_app: MakeApp, store: RequestStore, task_id: str
) -> None:
    """The end of a task is noticed without any poll."""
    app = make_app(dsn, aioabort_poll_interval=NEVER_POLLED)
    async with AbortClient(app) as client:
        waiting = await waiting_for(client, task_id)
        await end(app, task_id, "value", states.SUCCESS)
        await store.notify_clients([task_id])
        with fail_after(5):
            assert await waiting == "value"


@pytest.mark.parametrize("notify", [True, False])
async def test_the_poll_ends_the_wait(
    dsn: str, make_app: MakeApp, task_id: str, notify: bool
) -> None:
    """Lose every notification, and the only difference is time."""
    app = make_app(dsn, aioabort_poll_interval=0.05, aioabort_notify=notify)
    async with AbortClient(app) as client:
        waiting = await waiting_for(client, task_id)
        await end(app, task_id, "value", states.SUCCESS)
        with fail_after(5):
            assert await waiting == "value"


async def test_an_end_before_the_client_listens_is_not_missed(
    dsn: str, make_app: MakeApp, task_id: str
) -> None:
    """The first query finds a task that ended before the client listened.

    task ends, NOTIFY unheard | LISTEN | wait(): queries at once
    """
    app = make_app(dsn, aioabort_poll_interval=NEVER_POLLED)
    await end(app, task_id, "value", states.SUCCESS)
    async with AbortClient(app) as client:
        with fail_after(5):
            assert await client.wait(task_id) == "value"


async def test_a_timeout_names_the_task(client: AbortClient, task_id: str) -> None:
    """After the timeout the error says which task did not end, in how many seconds."""
    with fail_after(5), pytest.raises(WaitTimeout, match=f"{task_id}.*0.05 s"):
        await client.wait(task_id, timeout=0.05)


@pytest.mark.parametrize("timeout", [0, -1])
async def test_no_time_to_wait_is_one_look(
    app: Celery, client: AbortClient, task_id: str, timeout: float
) -> None:
    """A timeout of nothing returns what is there, and waits for nothing."""
    with pytest.raises(WaitTimeout):
        await client.wait(task_id, timeout=timeout)
    await end(app, task_id, "value", states.SUCCESS)
    assert await client.wait(task_id, timeout=timeout) == "value"


async def test_one_waiter_that_gives_up_does_not_disturb_the_others(
    app: Celery, client: AbortClient, store: RequestStore, task_id: str
) -> None:
    """Many wait for one task; those who are cancelled leave, the rest get the value."""
    waiters = [asyncio.create_task(client.wait(task_id)) for _ in range(10)]
    await are_awaited(client, len(waiters))
    for waiter in waiters[::2]:
        waiter.cancel()
    await end(app, task_id, "value", states.SUCCESS)
    await store.notify_clients([task_id])
    with fail_after(5):
        answers = await asyncio.gather(*waiters, return_exceptions=True)
    assert answers[1::2] == ["value"] * 5
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::2])


async def test_a_receipt_tells_the_three_cases_apart(
    app: Celery, client: AbortClient, task_id: str
) -> None:
    """Requested now, requested before (by whom), or finished (in which state)."""
    first = await client.abort(task_id, reason="why", requested_by="alice")
    assert (first.answer, first.is_requested) == ("requested", True)
    second = await client.abort(task_id, reason="other", requested_by="bob")
    assert (second.answer, second.is_requested) == ("requested_before", True)
    assert second.request == first.request
    await end(app, task_id, 1, states.SUCCESS)
    third = await client.abort(task_id)
    assert (third.answer, third.state) == ("finished", "SUCCESS")
    assert not third.is_requested


async def test_a_snapshot_tells_all_that_is_known(
    app: Celery, client: AbortClient, store: RequestStore, task_id: str
) -> None:
    """State, result, traceback and date of the task; who, why, when of the request."""
    unknown = await client.snapshot(task_id)
    assert (unknown.state, unknown.is_finished, unknown.request) == (
        "PENDING",
        False,
        None,
    )
    await client.abort(task_id, reason="why", requested_by="alice")
    asked = await client.snapshot(task_id)
    assert (asked.state, asked.is_aborted, asked.is_finished) == (
        "ABORTED",
        True,
        False,
    )
    assert asked.request is not None
    await store.record_seen([asked.request], [0.0], "node")
    await store.record_outcomes([asked.request], ["failed"], [0.0])
    await to_thread.run_sync(
        app.backend.store_result, task_id, ValueError("x"), states.FAILURE, "Traceback"
    )
    ended = await client.snapshot(task_id)
    assert (ended.state, ended.is_aborted, ended.is_finished) == (
        "FAILURE",
        False,
        True,
    )
    assert isinstance(ended.result, ValueError)
    assert ended.traceback == "Traceback"
    assert ended.date_done is not None
    assert ended.request is not None
    assert (ended.request.reason, ended.request.requested_by) == ("why", "alice")
    assert (ended.request.seen_by, ended.request.outcome) == ("node", "failed")


async def test_a_task_that_stores_nothing_ends_with_its_request(
    client: AbortClient, store: RequestStore
) -> None:
    """Where no result is stored, the outcome of the request ends the wait.

    Only that of an abort says how: the others may hide a value or an error.
    """
    outcomes: list[Outcome] = ["aborted", "returned", "failed", "too_late"]
    requests = await store.request_aborts(outcomes, "why")
    await store.record_outcomes(
        [requests[outcome] for outcome in outcomes], outcomes, [0.0] * 4
    )
    with fail_after(5):
        with pytest.raises(TaskAborted, match="why"):
            await client.wait("aborted")
        for outcome in outcomes[1:]:
            with pytest.raises(ResultMissing, match=f"{outcome}.* has expired"):
                await client.wait(outcome)
            assert (await client.snapshot(outcome)).is_finished
        errors = await client.gather(outcomes, return_exceptions=True)
    assert [type(error) for error in errors] == [TaskAborted] + [ResultMissing] * 3


async def test_an_expired_result_is_not_a_none(
    app: Celery, client: AbortClient, store: RequestStore, dsn: str, task_id: str
) -> None:
    """After Celery's cleanup, a task that had failed does not seem to have a value.

    request | the task fails | outcome | Celery deletes the result | wait
    """
    requests = await store.request_aborts([task_id])
    await end(app, task_id, ValueError("x"), states.FAILURE)
    await store.record_outcomes([requests[task_id]], ["failed"], [0.0])
    with pytest.raises(ValueError, match="x"):
        await client.wait(task_id, timeout=5)

    query_dicts(dsn, "UPDATE celery_taskmeta SET date_done = now() - interval '3 days'")
    await to_thread.run_sync(app.backend.cleanup)

    with pytest.raises(ResultMissing) as caught:
        await client.wait(task_id, timeout=5)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (copied.task_id, copied.outcome) == (task_id, "failed")
    assert str(copied) == str(caught.value)


@pytest.mark.parametrize("verb", ["abort", "wait", "snapshot", "is_aborted"])
async def test_a_malformed_id_is_refused(client: AbortClient, verb: str) -> None:
    """Every verb names what is wrong with the id, and PostgreSQL is not asked."""
    with pytest.raises(InvalidRequest, match="at most 155 characters"):
        await getattr(client, verb)("0" * 156)


async def test_a_refused_reason_writes_nothing(
    client: AbortClient, task_id: str
) -> None:
    """A request that cannot be stored whole is not stored at all."""
    with pytest.raises(InvalidRequest, match="reason"):
        await client.abort(task_id, reason="x" * 4_097)
    assert (await client.snapshot(task_id)).state == "PENDING"


async def test_a_client_that_is_not_open_says_so(app: Celery, task_id: str) -> None:
    """Before it is opened and after it is closed, every verb raises ClientClosed."""
    client = AbortClient(app)
    with pytest.raises(ClientClosed):
        await client.abort(task_id)
    async with client:
        pass
    with pytest.raises(ClientClosed):
        await client.wait(task_id)


async def test_closing_ends_every_wait(app: Celery, task_id: str) -> None:
    """No wait on a closed client goes on for ever."""
    async with AbortClient(app) as client:
        waiting = await waiting_for(client, task_id)
    with fail_after(5), pytest.raises(ClientClosed):
        await waiting


async def test_a_client_may_be_opened_and_closed_in_different_tasks(
    app: Celery, task_id: str
) -> None:
    """Fixtures and frameworks enter and leave a context in tasks of their own."""
    client = AbortClient(app)
    await asyncio.create_task(client.__aenter__())
    assert (await client.abort(task_id)).is_requested
    await asyncio.create_task(client.aclose())
    assert client.is_closed


def test_a_result_needs_no_client(app: Celery, dsn: str, task_id: str) -> None:
    """``await result.abort()`` opens a client for the loop, and closes it with it."""

    async def abort() -> int:
        result: AbortableAsyncResult[int] = AbortableAsyncResult(task_id, app=app)
        receipts = await asyncio.gather(*(result.abort() for _ in range(5)))
        assert [receipt.answer for receipt in receipts].count("requested") == 1
        assert await result.is_aborted()
        assert (await result.snapshot()).state == "ABORTED"
        return await count()

    async def count() -> int:
        connection = await asyncpg.connect(dsn)
        try:
            return int(await connection.fetchval(CONNECTIONS))
        finally:
            await connection.close()

    assert asyncio.run(abort()) >= 2

    async def all_closed() -> bool:
        return await count() == 0

    asyncio.run(until(all_closed))
    # Another loop gets another client.
    assert asyncio.run(abort_again(app, task_id)) == "requested_before"


def test_a_loop_is_freed_after_its_last_result(app: Celery, task_id: str) -> None:
    """A loop that has used results is collected once ``asyncio.run()`` has closed it.

    Frameworks that run one loop for each HTTP request would keep all of them in memory.
    """
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def read() -> str:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        return (await AbortableAsyncResult(task_id, app=app).snapshot()).state

    assert [asyncio.run(read()) for _ in range(3)] == ["PENDING"] * 3
    gc.collect()
    assert [loop() for loop in loops] == [None] * 3


async def abort_again(app: Celery, task_id: str) -> str:
    result: AbortableAsyncResult[int] = AbortableAsyncResult(task_id, app=app)
    return (await result.abort()).answer


def test_making_a_result_does_not_connect(make_app: MakeApp, task_id: str) -> None:
    """An id from a URL becomes a result without a backend, let alone a connection."""
    app = make_app("postgresql://nobody@127.0.0.1:1/nothing")
    result: AbortableAsyncResult[Any] = AbortableAsyncResult(task_id, app=app)
    assert result.id == task_id
    del result


async def test_an_unreachable_server_is_a_clear_error(
    make_app: MakeApp, task_id: str
) -> None:
    """No server listens at the address: opening says so, and prints no password."""
    app = make_app("postgresql://me:s3cretWord@127.0.0.1:1/db")
    with (
        fail_after(15),
        pytest.raises(StoreUnavailable, match="PostgreSQL is away") as e,
    ):
        await AbortClient(app).open()
    assert "s3cretWord" not in repr(e.value) + str(e.value)
    result: AbortableAsyncResult[Any] = AbortableAsyncResult(task_id, app=app)
    for _ in range(2):
        with fail_after(15), pytest.raises(StoreUnavailable):
            await result.abort()


async def test_a_database_that_does_not_exist_is_a_clear_error(
    dsn: str, make_app: MakeApp
) -> None:
    """The error has the server's own words, and the setting with the address."""
    missing = dsn.replace("/aioabort_", "/missing_")
    for setting, app in {
        "result_backend": make_app(missing),
        "aioabort_dsn": make_app(dsn, aioabort_dsn=missing),
    }.items():
        words = rf'"missing_.*does not exist \(from {setting}: postgresql://.*/missing_'
        with fail_after(15), pytest.raises(StoreError, match=words):
            await AbortClient(app).open()


def test_a_name_is_no_app(app: Celery) -> None:
    """The error says what to pass; Celery's proxy of an app is an app."""
    name: Any = "proj"
    with pytest.raises(TypeError, match=r"must be your Celery app.*not 'proj'"):
        AbortClient(name)
    proxy: Any = Proxy(lambda: app)
    assert AbortClient(proxy).is_closed is False


@pytest.mark.parametrize("backend", ["redis://:s3cretWord@host/0", "disabled", None])
def test_an_app_without_postgresql_is_refused(backend: str | None) -> None:
    """The first use says that PostgreSQL is needed, and prints no password."""
    app = Celery("tests", broker="memory://", backend=backend, set_as_current=False)
    with pytest.raises(ImproperlyConfigured, match="needs PostgreSQL") as caught:
        AbortClient(app)
    assert "s3cretWord" not in str(caught.value)


async def test_eager_tasks_cannot_be_sent(app: Celery, client: AbortClient) -> None:
    """What ran in the sender's process has nothing to abort: an error, no silence."""
    app.conf.task_always_eager = True

    @app.task(shared=False)
    def eager() -> int:
        return 1

    with pytest.raises(AioabortError, match="task_always_eager"):
        await client.send(eager)


async def test_a_wait_outlives_an_outage(
    network: Network,
    make_app: MakeApp,
    app: Celery,
    task_id: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While PostgreSQL is away, ``abort()`` raises and ``wait()`` goes on.

    wait() | connections reset | task ends, its notification is lost | back
    """
    client_app = make_app(network.dsn, aioabort_poll_interval=0.1)
    caplog.set_level(logging.INFO, "aioabort")
    async with AbortClient(client_app) as client:
        waiting = await waiting_for(client, task_id)
        await network.cut()
        with fail_after(10), pytest.raises(StoreUnavailable, match="away"):
            await client.abort(task_id)
        with fail_after(10), pytest.raises(WaitTimeout, match="could not be asked"):
            await client.wait(task_id, timeout=1)
        await end(app, task_id, "value", states.SUCCESS)
        await network.mend()
        with fail_after(15):
            assert await waiting == "value"
        assert (await client.abort(task_id)).answer == "finished"
    warnings = [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("aioabort")
    ]
    assert 1 <= len(warnings) <= 2, warnings  # the hub's, the listener's


async def test_a_listener_that_was_ended_listens_again(
    dsn: str,
    make_app: MakeApp,
    database: "asyncpg.Connection[Any]",
    task_id: str,
) -> None:
    """``pg_terminate_backend`` costs a reconnect, and what ended meanwhile is found.

    wait() | listener ended | task ends, NOTIFY unheard | LISTEN again, look at all
    """
    app = make_app(dsn, aioabort_poll_interval=NEVER_POLLED)
    async with AbortClient(app) as client:
        waiting = await waiting_for(client, task_id)
        await listening(client)
        ended = await database.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND query LIKE 'LISTEN%'"
        )
        assert ended == 1
        await end(app, task_id, "value", states.SUCCESS)
        with fail_after(BOUND):
            assert await waiting == "value"


async def test_a_refusal_reaches_those_who_wait(
    app: Celery, database: "asyncpg.Connection[Any]", task_id: str
) -> None:
    """A table that is gone does not come back by waiting: the error is raised."""
    async with AbortClient(app) as client:
        await database.execute("DROP TABLE aioabort_request")
        with fail_after(10), pytest.raises(StoreError, match="aioabort_request"):
            await client.wait(task_id)
        with suppress(asyncio.CancelledError), pytest.raises(StoreError):
            await client.abort(task_id)
