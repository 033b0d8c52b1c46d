"""Results too large for the query that all waiters share, and the waiters beside them.

There is no worker here: a test stores results as a worker would.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from anyio import fail_after, to_thread
from celery import Celery, states

from aioabort import AbortClient
from aioabort.postgres.request_store import RequestStore
from tests.integration.steps import are_awaited, end
from tests.support.apps import MakeApp
from tests.support.databases import query_dicts
from tests.support.network import Network
from tests.support.waiting import BOUND, until

MEGABYTE = 1_000_000

#: Five parts and a half.
LARGE = "0123456789" * 550_000

Hook = Callable[[int], Awaitable[object]]


class Parts:
    """The parts that clients fetch; a test may hold or disturb them."""

    def __init__(self) -> None:
        self.fetched: list[tuple[str, int]] = []
        self.sizes: list[int] = []
        #: Awaited before each part, with the bytes before it.
        self.before: Hook = lambda _: asyncio.sleep(0)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Parts]:
    """Records each part of a large result."""
    parts = Parts()
    read_part = RequestStore.read_part

    async def read(
        store: RequestStore, task_id: str, column: str, offset: int, size: int
    ) -> Any:
        await parts.before(offset)
        found = await read_part(store, task_id, column, offset, size)
        parts.fetched.append((column, offset))
        parts.sizes.append(len(found[1] or b""))
        return found

    monkeypatch.setattr(RequestStore, "read_part", read)
    return parts


@pytest.fixture
async def client(app: Celery, parts: Parts) -> AsyncIterator[AbortClient]:
    """A client whose parts are recorded."""
    assert not parts.fetched
    async with AbortClient(app) as client:
        yield client


async def test_a_large_value_is_the_same_by_every_way(
    app: Celery, client: AbortClient, parts: Parts, task_id: str
) -> None:
    """It is fetched in parts of a megabyte, and once for all who wait."""
    waiting = [asyncio.create_task(client.wait(task_id)) for _ in range(3)]
    await are_awaited(client, 3)
    await end(app, task_id, LARGE)
    with fail_after(BOUND):
        assert await asyncio.gather(*waiting) == [LARGE] * 3
    assert parts.fetched == [("result", n * MEGABYTE) for n in range(6)]
    assert max(parts.sizes) == MEGABYTE

    with fail_after(BOUND):
        assert await client.wait(task_id, timeout=0) == LARGE
        assert (await client.snapshot(task_id)).result == LARGE
        assert await client.gather([task_id], timeout=0) == [LARGE]
        async with aclosing(client.watch(task_id)) as snapshots:
            assert (await anext(snapshots)).result == LARGE


async def test_a_large_traceback_is_whole(
    app: Celery, client: AbortClient, task_id: str
) -> None:
    """A recursion of some depth has a traceback of megabytes, which may be any text."""
    traceback = "Traceback é𝔘\n" * 200_000
    store = app.backend.store_result
    await to_thread.run_sync(
        store, task_id, ValueError("y" * 3 * MEGABYTE), states.FAILURE, traceback
    )
    with fail_after(BOUND):
        with pytest.raises(ValueError, match="yyy") as caught:
            await client.wait(task_id)
        assert len(str(caught.value)) == 3 * MEGABYTE
        assert (await client.snapshot(task_id)).traceback == traceback


async def test_waiters_beside_a_large_result(
    app: Celery, client: AbortClient, parts: Parts
) -> None:
    """They get their results, of tasks that ended before or meanwhile, without delay.

    both ended | the query: small | the parts of the large one are held | a third ends,
    and is delivered | the parts arrive
    """
    may_go = asyncio.Event()
    parts.before = lambda _: may_go.wait()
    await end(app, "large", LARGE)
    await end(app, "small", 1)
    with fail_after(BOUND):
        large = asyncio.create_task(client.wait("large"))
        assert await client.wait("small") == 1
        later = asyncio.create_task(client.wait("later"))
        await are_awaited(client, 2)
        await end(app, "later", 2)
        assert await later == 2
        assert not large.done()
        may_go.set()
        assert await large == LARGE


async def test_many_results_that_are_large_together(
    app: Celery, client: AbortClient
) -> None:
    """Each of them is small enough, but not all of them in one query."""
    results = {f"task-{n}": str(n) * 900_000 for n in range(8)}
    for task_id, value in results.items():
        await end(app, task_id, value)
    with fail_after(BOUND):
        assert await client.gather([*results]) == [*results.values()]
        assert await client.gather([*results], timeout=0) == [*results.values()]


async def test_a_result_that_is_replaced_meanwhile(
    app: Celery, client: AbortClient, parts: Parts, dsn: str, task_id: str
) -> None:
    """No value is put together from parts of two results.

    FAILURE | its first parts | the id runs again: SUCCESS | its parts, from the first on
    """
    replaced: list[int] = []

    async def replace(offset: int) -> None:
        if offset == 2 * MEGABYTE and not replaced:
            replaced.append(offset)
            query_dicts(dsn, "DELETE FROM celery_taskmeta")
            await end(app, task_id, LARGE[::-1])

    parts.before = replace
    await end(app, task_id, ValueError(LARGE), states.FAILURE)
    with fail_after(BOUND):
        assert await client.wait(task_id) == LARGE[::-1]
    assert replaced
    assert parts.fetched.count(("result", 0)) == 2


async def test_an_outage_in_the_middle(
    network: Network, make_app: MakeApp, app: Celery, parts: Parts, task_id: str
) -> None:
    """What has arrived is not fetched again.

    two parts | the network is cut | mended | the other parts
    """
    is_cut = asyncio.Event()

    async def cut(offset: int) -> None:
        if offset == 2 * MEGABYTE and not is_cut.is_set():
            await network.cut()
            is_cut.set()

    parts.before = cut
    await end(app, task_id, LARGE)
    client_app = make_app(network.dsn, aioabort_poll_interval=0.1)
    async with AbortClient(client_app) as client:
        waiting = asyncio.create_task(client.wait(task_id))
        with fail_after(BOUND):
            await is_cut.wait()
            await until(lambda: not client.health().is_connected)
            await network.mend()
            assert await waiting == LARGE
    assert parts.fetched == [("result", n * MEGABYTE) for n in range(6)]


async def test_a_wait_that_is_given_up(
    app: Celery, client: AbortClient, parts: Parts, task_id: str
) -> None:
    """A result without a waiter is not fetched any further."""
    begun, may_go = asyncio.Event(), asyncio.Event()

    async def hold(offset: int) -> None:
        if offset:
            begun.set()
            await may_go.wait()

    parts.before = hold
    await end(app, task_id, LARGE)
    waiting = asyncio.create_task(client.wait(task_id))
    with fail_after(BOUND):
        await begun.wait()
        waiting.cancel()
        await asyncio.wait([waiting])
        may_go.set()
        await end(app, "other", LARGE)
        assert await client.wait("other") == LARGE
    assert len(parts.fetched) == 2 + 6
