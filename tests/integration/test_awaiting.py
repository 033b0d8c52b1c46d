"""Awaiting many tasks, and what becomes of a task whose wait is cancelled.

There is no worker here: a test stores results as a worker would.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from traceback import walk_tb
from typing import Any, TypeAlias

import asyncpg
import pytest
from anyio import fail_after, move_on_after
from celery import Celery, states
from celery.result import AsyncResult, EagerResult, GroupResult

from aioabort import (
    AbortableAsyncResult,
    AbortClient,
    AioabortError,
    ClientClosed,
    InvalidRequest,
    StoreError,
    WaitTimeout,
)
from aioabort.postgres.request_store import RequestStore
from aioabort.timing import Timing
from tests.integration.steps import are_awaited, end, new_ids
from tests.support.apps import MakeApp
from tests.support.network import Network
from tests.support.waiting import until

Database: TypeAlias = "asyncpg.Connection[Any]"


async def test_values_are_in_order(
    app: Celery, client: AbortClient, store: RequestStore
) -> None:
    """Whatever ended first: the values are in the order of what was asked."""
    ids = new_ids(3)
    gathering = asyncio.create_task(client.gather(ids))
    await are_awaited(client, 3)
    for task_id in reversed(ids):
        await end(app, task_id, f"value of {task_id}")
        await store.notify_clients([task_id])
    with fail_after(10):
        assert await gathering == [f"value of {task_id}" for task_id in ids]
    assert client.health().waiters == 0


async def test_a_group_has_a_list_of_values(app: Celery, client: AbortClient) -> None:
    """As Celery's ``get()``: a list for a group, and one in it for a group within."""
    ids = [f"task {number}" for number in range(5)]
    for number, task_id in enumerate(ids):
        await end(app, task_id, number)
    results: list[AsyncResult[Any]] = [AsyncResult(task_id, app=app) for task_id in ids]
    inner = GroupResult("inner", results[2:4])
    outer: Any = GroupResult("outer", [results[1], inner])
    with fail_after(10):
        assert await client.gather([ids[0], outer, results[4], ids[0]]) == [
            *(0, [1, [2, 3]], 4, 0)
        ]
        assert await client.gather(outer) == [1, [2, 3]]
        assert await client.gather([]) == []


async def test_the_first_error_is_raised_and_the_others_go_on(
    app: Celery, client: AbortClient, store: RequestStore
) -> None:
    """As with ``asyncio.gather()``, a failed task aborts no other task."""
    failing, running = new_ids(2)
    gathering = asyncio.create_task(client.gather([running, failing]))
    await are_awaited(client, 2)
    await end(app, failing, KeyError("k"), states.FAILURE)
    await store.notify_clients([failing])
    with fail_after(10), pytest.raises(KeyError, match="k"):
        await gathering
    assert (await client.snapshot(running)).request is None
    assert client.health().waiters == 0


async def test_errors_take_the_place_of_values(
    app: Celery, client: AbortClient
) -> None:
    """With ``return_exceptions`` all are awaited, and nothing is raised."""
    good, bad = new_ids(2)
    await end(app, good, 1)
    await end(app, bad, KeyError("k"), states.FAILURE)
    with fail_after(10):
        first, second = await client.gather([bad, good], return_exceptions=True)
    assert isinstance(first, KeyError)
    assert second == 1


async def test_results_come_as_they_end(
    app: Celery, client: AbortClient, store: RequestStore
) -> None:
    """Each of the results that were passed, when it has ended."""
    results = [client.result(task_id) for task_id in new_ids(3)]
    came: list[Any] = []

    async def consume() -> None:
        async for result in client.as_completed(results):
            came.append(result)  # noqa: PERF401 - it is looked at meanwhile

    consuming = asyncio.create_task(consume())
    await are_awaited(client, 3)
    for number in (1, 2, 0):
        await end(app, results[number].id, number)
        await store.notify_clients([results[number].id])
        await until(lambda last=results[number]: came and came[-1] is last)
    with fail_after(10):
        await consuming
    assert [await result for result in came] == [1, 2, 0]


async def test_what_came_needs_no_other_look(
    app: Celery, client: AbortClient, database: Database
) -> None:
    """Awaiting what ``as_completed()`` yields sends no query, for an error too."""
    good, bad = new_ids(2)
    await end(app, good, 1)
    await end(app, bad, KeyError("k"), states.FAILURE)
    plain: AsyncResult[Any] = AsyncResult(good, app=app)
    came = [result async for result in client.as_completed([plain, bad])]
    await database.execute("DROP TABLE celery_taskmeta")
    assert all(isinstance(result, AbortableAsyncResult) for result in came)
    ends = {result.id: result for result in came}
    assert await ends[good].wait(timeout=0) == 1
    with pytest.raises(KeyError, match="k"):
        await ends[bad]


async def test_who_stops_listening_leaves_nothing_behind(
    app: Celery, client: AbortClient
) -> None:
    """A loop that is left, a generator that is closed, and a task that is cancelled."""
    done, *others = new_ids(5)
    await end(app, done, 1)
    async with aclosing(client.as_completed([*others, done])) as results:
        async for result in results:
            assert result.id == done
            break
    await are_awaited(client, 0)
    gathering = asyncio.create_task(client.gather(others))
    await are_awaited(client, 4)
    gathering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gathering
    await are_awaited(client, 0)


@pytest.mark.parametrize("timeout", [0.1, 0, -1])
async def test_who_did_not_end_in_time_is_named(
    app: Celery, client: AbortClient, timeout: float
) -> None:
    """The timeout is for all together; what has ended comes before it is raised."""
    done, late = new_ids(2)
    await end(app, done, 1)
    with fail_after(10), pytest.raises(WaitTimeout, match=late):
        await client.gather([done, late], timeout=timeout)
    came = []
    with fail_after(10), pytest.raises(WaitTimeout, match=late):  # noqa: PT012
        async for result in client.as_completed([late, done], timeout=timeout):
            came.append(result.id)  # noqa: PERF401 - it is raised from the loop
    assert came == [done]
    assert await client.gather([done, done], timeout=timeout or 0) == [1, 1]


async def test_ten_thousand_are_gathered_without_a_task_each(
    app: Celery, client: AbortClient, store: RequestStore, database: Database
) -> None:
    """They cost a future each, and all of them a handful of statements."""
    [first, *others] = ids = new_ids(10_000)
    gathering = asyncio.create_task(client.gather(ids))
    await are_awaited(client, len(ids))
    assert len(asyncio.all_tasks()) < 30
    await end(app, first, {"n": 1})
    await database.execute(
        "INSERT INTO celery_taskmeta (id, task_id, status, result)"
        "SELECT nextval('task_id_sequence'), other, 'SUCCESS', t.result "
        "FROM celery_taskmeta AS t, unnest($1::text[]) AS other",
        others,
    )
    await store.notify_clients(ids)
    with fail_after(60):
        assert await gathering == [{"n": 1}] * len(ids)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (7, "not 7"),
        ([7], "not 7"),
        (["id", None], "not None"),
        (["id", ""], "not empty"),
        ({"task": "step"}, "named by its id or its result"),
    ],
)
async def test_what_is_no_task_cannot_be_awaited(
    client: AbortClient, wrong: Any, message: str
) -> None:
    """It is refused before anything is awaited."""
    with pytest.raises(InvalidRequest, match=message):
        await client.gather(wrong)
    with pytest.raises(InvalidRequest, match=message):
        await anext(client.as_completed(wrong))


async def test_a_group_is_not_one_task(app: Celery, client: AbortClient) -> None:
    """``wait()`` is for one, and says what is for many."""
    group: Any = GroupResult("group", [AsyncResult("id", app=app)])
    for verb in (client.wait, client.snapshot, client.is_aborted):
        with pytest.raises(InvalidRequest, match="gather"):
            await verb(group)


async def test_eager_results_cannot_be_awaited_here(client: AbortClient) -> None:
    """A task that ran in this process is not in PostgreSQL: an error, no endless wait."""
    eager: EagerResult[int] = EagerResult("id", 1, states.SUCCESS)
    for verb in (
        client.wait(eager),
        client.snapshot(eager),
        client.gather([eager]),
        anext(client.as_completed([eager])),
    ):
        with fail_after(5), pytest.raises(AioabortError, match="task_always_eager"):
            await verb


async def test_a_closed_client_ends_all(app: Celery) -> None:
    """Who gathers gets ClientClosed, as who waits for one."""
    async with AbortClient(app) as client:
        gathering = asyncio.create_task(client.gather(new_ids(3)))
        await are_awaited(client, 3)
    with fail_after(5), pytest.raises(ClientClosed):
        await gathering


async def test_a_refusal_is_raised_for_each(app: Celery, database: Database) -> None:
    """A table that is gone is an error, and takes the places of all values."""
    async with AbortClient(app) as client:
        await database.execute("DROP TABLE aioabort_request")
        with fail_after(10), pytest.raises(StoreError, match="aioabort_request"):
            await client.gather(["a", "b"])
        with fail_after(10):
            errors = await client.gather(["a", "b"], return_exceptions=True)
        assert [type(error) for error in errors] == [StoreError] * 2


async def test_a_refusal_has_one_traceback_for_each(
    app: Celery, database: Database
) -> None:
    """However many are told, to no traceback is added what the others do."""
    async with AbortClient(app) as client:
        await database.execute("DROP TABLE aioabort_request")
        with fail_after(10):
            alone = await client.gather(["a"], return_exceptions=True)
            errors = await client.gather(new_ids(100), return_exceptions=True)
    one, many = ({length(error) for error in raised} for raised in (alone, errors))
    assert many == one
    driver_error = asyncpg.UndefinedTableError
    assert all(isinstance(error.__cause__, driver_error) for error in errors)


def length(error: BaseException) -> int:
    """Return through how many frames it was raised."""
    return len(list(walk_tb(error.__traceback__)))


Wait = Callable[[Any], Awaitable[object]]


async def by_task(wait: Any) -> None:
    """Cancel a task that awaits."""
    waiting = asyncio.ensure_future(wait)
    await asyncio.sleep(0.1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert waiting.cancelled()


async def by_timeout(wait: Any) -> None:
    """Let asyncio's timeout run out."""
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.1):
            await wait
    assert not isinstance(caught.value, WaitTimeout)


async def by_wait_for(wait: Any) -> None:
    """Let the older function's timeout run out."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wait, 0.1)


async def by_scope(wait: Any) -> None:
    """Leave anyio's cancel scope, which cancels again and again."""
    with move_on_after(0.1) as scope:
        await wait
    assert scope.cancelled_caught


async def by_task_group(wait: Any) -> None:
    """Have a sibling fail."""

    async def fail() -> None:
        await asyncio.sleep(0.1)
        raise ZeroDivisionError

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            group.create_task(wait)
    except* ZeroDivisionError as errors:
        failed = errors
    assert len(failed.exceptions) == 1


CANCELS = [by_task, by_timeout, by_wait_for, by_scope, by_task_group]


@pytest.mark.parametrize("cancel", CANCELS)
@pytest.mark.parametrize("is_result", [True, False])
async def test_a_cancelled_wait_aborts_its_task(
    client: AbortClient, cancel: Callable[[Any], Awaitable[None]], is_result: bool
) -> None:
    """However it is cancelled: the request is committed, and the cancellation goes on."""
    [task_id] = new_ids(1)
    if is_result:
        wait: Any = client.result(task_id).wait(abort_on_cancel=True, reason="gone")
    else:
        wait = client.wait(task_id, abort_on_cancel=True)
    with fail_after(10):
        await cancel(wait)
    request = (await client.snapshot(task_id)).request
    assert request is not None
    expected = "gone" if is_result else "the wait for its result was cancelled"
    assert request.reason == expected
    assert client.health().waiters == 0


@pytest.mark.parametrize("cancel", CANCELS)
async def test_a_cancelled_wait_aborts_nothing_unasked(
    client: AbortClient, cancel: Callable[[Any], Awaitable[None]]
) -> None:
    """Without the argument, the task goes on."""
    [task_id] = new_ids(1)
    await cancel(client.result(task_id).wait())
    assert (await client.snapshot(task_id)).request is None


async def test_a_timeout_of_the_wait_itself_aborts_nothing(
    client: AbortClient,
) -> None:
    """``timeout=`` says how long to wait, not how long the task may take."""
    [task_id] = new_ids(1)
    with pytest.raises(WaitTimeout):
        await client.wait(task_id, 0.1, abort_on_cancel=True)
    assert (await client.snapshot(task_id)).request is None


async def test_a_wrong_reason_is_refused_at_once(client: AbortClient) -> None:
    """It is not logged when the caller gets it."""
    wrong: Any = 7
    with pytest.raises(InvalidRequest, match="reason"):
        await client.wait("id", abort_on_cancel=True, reason=wrong)
    with pytest.raises(InvalidRequest, match="reason"):
        await client.result("id").wait(abort_on_cancel=True, reason="a\0")


async def test_a_second_cancellation_does_not_wait_for_the_first(
    client: AbortClient, database: Database
) -> None:
    """Who is cancelled twice goes at once, and the task is asked all the same.

    cancel | abort: waits for the row | cancel again: gone | row free | abort: committed
    """
    [task_id] = new_ids(1)
    waiting = asyncio.ensure_future(client.wait(task_id, abort_on_cancel=True))
    await are_awaited(client, 1)
    async with database.transaction():
        await database.execute(
            "INSERT INTO celery_taskmeta (id, task_id) VALUES (1000, $1)", task_id
        )
        waiting.cancel()
        await asyncio.sleep(0.1)
        assert not waiting.done()
        waiting.cancel()
        with fail_after(1), pytest.raises(asyncio.CancelledError):
            await waiting

    async def request() -> object:
        return (await client.snapshot(task_id)).request

    await until(request)


async def test_an_abort_delays_a_cancellation_for_seconds_only(
    dsn: str, make_app: MakeApp, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """When PostgreSQL does not answer, the cancellation goes on, with a warning."""
    app = make_app(dsn, aioabort_timing=Timing(abort_on_cancel_timeout=0.2))
    [task_id] = new_ids(1)
    async with AbortClient(app) as client:
        waiting = asyncio.ensure_future(client.wait(task_id, abort_on_cancel=True))
        await are_awaited(client, 1)
        async with database.transaction():
            await database.execute(
                "INSERT INTO celery_taskmeta (id, task_id) VALUES (1000, $1)", task_id
            )
            waiting.cancel()
            with fail_after(5), pytest.raises(asyncio.CancelledError):
                await waiting
    assert "could not abort its task within 0.2 s" in caplog.text


async def test_a_cancelled_wait_without_postgresql(
    network: Network, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """When PostgreSQL is away, the cancellation goes on, with a warning."""
    caplog.set_level(logging.WARNING, "aioabort")
    async with AbortClient(make_app(network.dsn)) as client:
        waiting = asyncio.ensure_future(client.wait("id", abort_on_cancel=True))
        await are_awaited(client, 1)
        await network.cut()
        waiting.cancel()
        with fail_after(10), pytest.raises(asyncio.CancelledError):
            await waiting
    assert (
        "A cancelled wait could not abort its task: PostgreSQL is away" in caplog.text
    )


def test_a_wait_that_is_cancelled_while_it_connects(app: Celery) -> None:
    """The task of a result without a client is asked through the one that is opened."""
    [task_id] = new_ids(1)

    async def be_cancelled() -> None:
        result: AbortableAsyncResult[Any] = AbortableAsyncResult(task_id, app=app)
        waiting = asyncio.ensure_future(result.wait(abort_on_cancel=True))
        await asyncio.sleep(0)
        waiting.cancel()
        with fail_after(10), pytest.raises(asyncio.CancelledError):
            await waiting
        assert await result.is_aborted()

    asyncio.run(be_cancelled())
