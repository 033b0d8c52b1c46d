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

from aioabort import AbortClient, ClientClosed, TaskAborted, WaitTimeout
from aioabort.postgres.store import Store

MakeApp = Callable[..., Celery]

Watch = AsyncIterator[Any]

#: What is stored for a task: a result and a state.
Store_ = Callable[[str, Any, str], Awaitable[None]]

#: So long that a test which depends on the poll would time out.
NEVER_POLLED = 3_600.0


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
    """Whoever is busy with one state goes on with the latest, not with a backlog.

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
        with fail_after(5):
            while client.health().waiters:
                await asyncio.sleep(0)
        await asyncio.sleep(0.05)  # a look may have been under way
        queries.looks = 0
        await asyncio.sleep(0.2)
        assert queries.looks == 0


async def test_many_wait_for_one_task(
    client: AbortClient, put: Store_, store: Store, task_id: str
) -> None:
    """A thousand who wait for one task are woken by one look, in turns with the loop."""
    waiting = [asyncio.create_task(client.wait(task_id)) for _ in range(1_000)]
    await asyncio.sleep(0.1)
    assert client.health().waiters == 1_000
    await put(task_id, "value", states.SUCCESS)
    await store.hint_clients([task_id])
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
