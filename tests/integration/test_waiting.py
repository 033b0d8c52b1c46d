"""Many who wait and watch on one loop: what they see, and what it costs.

There is no worker here: a test stores results as a worker would.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from anyio import fail_after, to_thread
from celery import Celery, states

from aioabort import (
    AbortClient,
    AbortReceipt,
    ClientClosed,
    InvalidRequest,
    TaskAborted,
    WaitTimeout,
)
from aioabort.postgres.request_store import RequestStore
from tests.integration.steps import are_awaited
from tests.support.apps import MakeApp
from tests.support.waiting import BOUND, NEVER_POLLED

Watch = AsyncIterator[Any]

#: What is stored for a task: a result and a state.
Store_ = Callable[[str, Any, str], Awaitable[None]]


@pytest.fixture
def put(app: Celery) -> Store_:
    """Stores a state as a worker does."""

    async def put(task_id: str, result: Any, state: str) -> None:
        await to_thread.run_sync(app.backend.store_result, task_id, result, state)

    return put


@pytest.fixture
async def quick(dsn: str, make_app: MakeApp) -> AsyncIterator[AbortClient]:
    """A client that polls many times a second."""
    async with AbortClient(make_app(dsn, aioabort_poll_interval=0.1)) as client:
        yield client


class Queries:
    """A pool that counts the looks of the client that borrows it."""

    def __init__(self) -> None:
        self.looks = 0

    async def init(self, connection: "asyncpg.Connection[Any]") -> None:
        connection.add_query_logger(self._count)

    def _count(self, logged: Any) -> None:
        self.looks += "UNION ALL" in logged.query


async def next_of(snapshots: Watch) -> Any:
    with fail_after(5):
        return await anext(snapshots)


async def test_a_watcher_sees_every_state_up_to_the_end(
    quick: AbortClient, put: Store_, task_id: str
) -> None:
    """Unknown, started, progress, asked to stop, stopped: each once, then it ends."""
    async with aclosing(quick.watch(task_id)) as snapshots:
        first = await next_of(snapshots)
        assert (first.state, first.is_finished) == ("PENDING", False)
        await put(task_id, None, states.STARTED)
        assert (await next_of(snapshots)).state == "STARTED"
        for number in range(3):
            await put(task_id, {"files": number}, "PROGRESS")
            progress = await next_of(snapshots)
            assert (progress.state, progress.result) == ("PROGRESS", {"files": number})
        await quick.abort(task_id, reason="why")
        asked = await next_of(snapshots)
        assert (asked.state, asked.is_aborted) == ("ABORTED", True)
        assert asked.request.reason == "why"
        await put(task_id, TaskAborted("why", None, task_id), states.REVOKED)
        last = await next_of(snapshots)
        assert (last.state, last.is_finished) == ("REVOKED", True)
        with pytest.raises(StopAsyncIteration):
            await next_of(snapshots)


async def test_what_has_not_changed_is_not_yielded_again(
    quick: AbortClient, put: Store_, task_id: str
) -> None:
    """Many polls find the same state, and the watcher hears of it once."""
    await put(task_id, {"n": 1}, "PROGRESS")
    async with aclosing(quick.watch(task_id)) as snapshots:
        await next_of(snapshots)
        following = asyncio.ensure_future(anext(snapshots))
        await asyncio.sleep(0.3)
        assert not following.done()
        await put(task_id, {"n": 2}, "PROGRESS")
        with fail_after(5):
            assert (await following).result == {"n": 2}


async def test_a_slow_watcher_sees_the_latest_state(
    quick: AbortClient, put: Store_, task_id: str
) -> None:
    """A reader that is busy with one state goes on with the latest, not with a backlog.

    first | 20 states, looked at but not taken | the twentieth, and nothing else
    """
    async with aclosing(quick.watch(task_id)) as snapshots:
        await next_of(snapshots)
        for number in range(20):
            await put(task_id, {"n": number}, "PROGRESS")
        # Time for several polls.
        await asyncio.sleep(0.4)
        assert (await next_of(snapshots)).result == {"n": 19}
        following = asyncio.ensure_future(anext(snapshots))
        await asyncio.sleep(0.2)
        assert not following.done()
        following.cancel()
        await asyncio.wait([following])


async def test_a_watcher_that_comes_later_sees_the_state_at_once(
    dsn: str, make_app: MakeApp, put: Store_, task_id: str
) -> None:
    """What is no news to the others is news to one who has seen nothing yet."""
    app = make_app(dsn, aioabort_poll_interval=NEVER_POLLED)
    await put(task_id, {"n": 1}, "PROGRESS")
    async with AbortClient(app) as client:
        early, late = client.watch(task_id), client.watch(task_id)
        async with aclosing(early), aclosing(late):
            assert (await next_of(early)).state == "PROGRESS"
            following = asyncio.ensure_future(anext(early))
            assert (await next_of(late)).result == {"n": 1}
            await asyncio.sleep(0.1)
            assert not following.done()
            following.cancel()
            await asyncio.wait([following])


async def test_a_watch_is_as_fresh_as_its_beginning(
    client: AbortClient, task_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch that begins after ``abort()`` shows the abort in its first snapshot.

    A query reads the task for another watch, and its answer is late | abort() returns |
    a watch begins | the answer comes, which does not know of the abort
    """
    has_read, may_answer = asyncio.Event(), asyncio.Event()
    source = client._connections.results
    read = source.read_for_waiters

    async def read_slowly(*ids: Any) -> Any:
        monkeypatch.undo()
        rows = await read(*ids)
        has_read.set()
        await may_answer.wait()
        return rows

    monkeypatch.setattr(source, "read_for_waiters", read_slowly)
    early, late = client.watch(task_id), client.watch(task_id)
    async with aclosing(early), aclosing(late):
        following = asyncio.ensure_future(anext(early))
        with fail_after(BOUND):
            await has_read.wait()
        await client.abort(task_id)
        first = asyncio.ensure_future(anext(late))
        await are_awaited(client, 2)
        may_answer.set()
        assert (await first).request is not None
        assert (await following).request is not None


async def test_a_result_can_be_watched(
    quick: AbortClient, put: Store_, task_id: str
) -> None:
    """``async for snapshot in result.watch()`` ends with the task."""
    await put(task_id, "value", states.SUCCESS)
    with fail_after(5):
        snapshots = [snapshot async for snapshot in quick.result(task_id).watch()]
    assert [(snapshot.state, snapshot.result) for snapshot in snapshots] == [
        ("SUCCESS", "value")
    ]


async def test_one_look_serves_waiters_and_watchers(
    dsn: str, make_app: MakeApp, put: Store_, task_id: str
) -> None:
    """Both are awaited at once, on one id, and both hear of the end."""
    async with AbortClient(make_app(dsn, aioabort_poll_interval=0.1)) as client:

        async def last_state() -> str:
            return [snapshot.state async for snapshot in client.watch(task_id)][-1]

        everybody = [client.wait(task_id), last_state(), client.wait(task_id)]
        waiting = asyncio.gather(*everybody)
        await asyncio.sleep(0.1)
        assert client.health().waiters == 3
        await put(task_id, "value", states.SUCCESS)
        with fail_after(5):
            assert await waiting == ["value", "SUCCESS", "value"]


async def test_whoever_leaves_leaves_nothing_behind(
    dsn: str, make_app: MakeApp, task_id: str
) -> None:
    """Waiters that time out or are cancelled, and watchers that break off, cost nothing.

    wait, wait, watch | time-out, cancel, break | no statement any more
    """
    queries = Queries()
    app = make_app(dsn, aioabort_poll_interval=0.02)
    async with (
        asyncpg.create_pool(dsn, min_size=0, init=queries.init) as pool,
        AbortClient(app, pool=pool) as client,
    ):
        cancelled = asyncio.create_task(client.wait(task_id))
        async for _ in client.watch(task_id):
            break
        with fail_after(5), pytest.raises(WaitTimeout):
            await client.wait(task_id, timeout=0.1)
        assert queries.looks > 0
        cancelled.cancel()
        await asyncio.wait([cancelled])
        await are_awaited(client, 0)
        await asyncio.sleep(0.05)  # a poll may have been under way
        queries.looks = 0
        await asyncio.sleep(0.2)
        assert queries.looks == 0


async def test_many_wait_for_one_task(
    client: AbortClient, put: Store_, store: RequestStore, task_id: str
) -> None:
    """A thousand who wait for one task are woken by one look, in turns with the loop."""
    waiting = [asyncio.create_task(client.wait(task_id)) for _ in range(1_000)]
    await asyncio.sleep(0.1)
    assert client.health().waiters == 1_000
    await put(task_id, "value", states.SUCCESS)
    await store.notify_clients([task_id])
    with fail_after(10):
        assert await asyncio.gather(*waiting) == ["value"] * 1_000
    assert client.health().waiters == 0


async def test_many_watchers_cost_no_more_queries_than_few(
    dsn: str, make_app: MakeApp
) -> None:
    """Looks are made for all at once: their number does not depend on how many watch."""
    queries = Queries()
    app = make_app(dsn, aioabort_poll_interval=0.4)

    async def watch(client: AbortClient) -> None:
        async for _ in client.watch(str(uuid4())):
            pass

    async with (
        asyncpg.create_pool(dsn, min_size=0, init=queries.init) as pool,
        AbortClient(app, pool=pool) as client,
    ):
        looks: list[int] = []
        for watchers in (3, 600):
            watching = [asyncio.create_task(watch(client)) for _ in range(watchers)]
            await asyncio.sleep(0.2)
            queries.looks = 0
            await asyncio.sleep(1.0)
            looks.append(queries.looks)
            for task in watching:
                task.cancel()
            await asyncio.wait(watching)
    few, many = looks
    assert few > 0
    # A hundredth of a query each would already be more.
    assert many <= few + 5


async def test_closing_ends_every_watch(quick: AbortClient, task_id: str) -> None:
    """A watcher hears that the client was closed, also one that was not waiting."""
    waiting, busy = quick.watch(task_id), quick.watch(task_id)
    async with aclosing(waiting), aclosing(busy):
        await next_of(waiting)
        await next_of(busy)
        following = asyncio.ensure_future(anext(waiting))
        await asyncio.sleep(0)
        await quick.aclose()
        with pytest.raises(ClientClosed):
            await following
        with pytest.raises(ClientClosed):
            await next_of(busy)


#: Each waits for *timeout* seconds, with a client and a receipt.
LIMITED_WAITS: dict[str, Callable[[AbortClient, AbortReceipt, Any], Awaitable[Any]]] = {
    "wait": lambda client, _, timeout: client.wait("x", timeout),
    "result": lambda client, _, timeout: client.result("x").wait(timeout),
    "gather": lambda client, _, timeout: client.gather(["x"], timeout=timeout),
    "ended": lambda client, _, timeout: anext(
        client.as_completed(["x"], timeout=timeout)
    ),
    "seen": lambda _, receipt, timeout: receipt.seen(timeout),
    "settled": lambda _, receipt, timeout: receipt.settled(timeout),
}


@pytest.mark.parametrize("timeout", [float("nan"), True, "1"])
@pytest.mark.parametrize("name", LIMITED_WAITS)
async def test_timeouts_are_numbers(
    client: AbortClient, name: str, timeout: object
) -> None:
    """Every wait refuses a timeout that is none, and the loop's timers go on.

    A timer for a NaN compares to no other one: the loop's heap of timers would be out
    of order, and none of the later ones would fire.
    """
    receipt = await client.abort("x")

    with pytest.raises(InvalidRequest, match="timeout is a number of seconds or None"):
        await LIMITED_WAITS[name](client, receipt, timeout)

    with fail_after(5):
        await asyncio.sleep(0.01)
    assert client.health().waiters == 0


async def test_an_infinite_timeout_is_no_timeout(
    client: AbortClient, put: Store_
) -> None:
    """A wait for a hundred years or more ends with the task."""
    waiting = [
        asyncio.create_task(client.wait("x", timeout))
        for timeout in (float("inf"), 10**400)
    ]
    await are_awaited(client, 2)
    await put("x", 1, states.SUCCESS)
    assert await asyncio.gather(*waiting) == [1, 1]
