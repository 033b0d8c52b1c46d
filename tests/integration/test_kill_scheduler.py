"""The end of a grace: one process kills the task, and only one."""

import asyncio
from collections.abc import Callable
from uuid import uuid4

from celery import Celery

from aioabort import AbortClient
from aioabort.postgres.pool import open_pool
from aioabort.postgres.request_store import RequestStore, open_request_store
from aioabort.settings import read_settings
from aioabort.timing import Timing


async def test_a_request_says_when_its_grace_is_over(
    client: AbortClient, store: RequestStore, task_id: str
) -> None:
    """``kill_at`` is in the receipt, and ``kill_in`` in the row that a worker reads."""
    receipt = await client.abort(task_id, grace=30)
    assert receipt.request is not None
    assert receipt.request.kill_at is not None
    after = receipt.request.kill_at - receipt.request.requested_at
    assert 29 < after.total_seconds() < 31
    kill_in = (await store.read_aborts([task_id]))[task_id].kill_in
    assert kill_in is not None
    assert 0 < kill_in <= 30


async def test_a_later_request_makes_it_more_urgent_never_less(
    client: AbortClient, store: RequestStore, task_id: str
) -> None:
    """The shortest grace counts; the first reason stays."""
    await client.abort(task_id, reason="first")
    for grace, at_most in ((60, 60), (10, 10), (600, 10)):
        await client.abort(task_id, reason="later", grace=grace)
        row = (await store.read_aborts([task_id]))[task_id]
        assert row.kill_in is not None
        assert at_most - 5 < row.kill_in <= at_most
        assert row.request is not None
        assert row.request.reason == "first"


async def test_a_kill_is_claimed_by_one(store: RequestStore, task_id: str) -> None:
    """Many notice that the grace is over, at once; one of them kills."""
    request = (await store.request_aborts([task_id], grace=0))[task_id]
    claims = await asyncio.gather(*(store.claim_kill(request) for _ in range(10)))
    assert sum(map(bool, claims)) == 1
    assert await store.claim_overdue_kills(0) == []
    row = (await store.read_aborts([task_id]))[task_id]
    assert row.request is not None
    # The outcome is recorded at the end of the task.
    assert (row.request.is_pending, row.kill_in) == (True, None)


async def test_a_task_that_ended_in_time_is_not_killed(
    store: RequestStore, task_id: str
) -> None:
    """The end of the task and of its grace at the same instant: the end came first."""
    request = (await store.request_aborts([task_id], grace=0))[task_id]
    await store.record_outcomes([request], ["returned"], [0.0])
    assert not await store.claim_kill(request)
    assert await store.claim_overdue_kills(0) == []


async def test_an_overdue_kill_is_claimed_by_another_once(
    app: Celery, store: RequestStore, task_id: str
) -> None:
    """Another process carries out an overdue kill, and no other."""
    other = str(uuid4())
    await store.request_aborts([task_id], grace=0)
    await store.request_aborts([other], grace=60)
    async with open_pool(read_settings(app).dsn, 4, Timing()) as pool:
        helper = await open_request_store(pool, read_settings(app))
        assert await helper.claim_overdue_kills(late=30) == []
        claims = await asyncio.gather(
            *(helper.claim_overdue_kills(late=0) for _ in range(4))
        )
    assert sorted(id_ for claim in claims for id_ in claim) == [task_id]
    row = (await store.read_aborts([task_id]))[task_id]
    assert row.request is not None
    # A task that has not begun must not begin.
    assert row.request.is_pending


async def test_grace_works_where_results_are_elsewhere(
    empty_dsn: str, make_app: Callable[..., Celery]
) -> None:
    """The statements that stand alone know the grace, too."""
    app = make_app(empty_dsn, aioabort_dsn=empty_dsn)
    settings = read_settings(app)
    async with open_pool(settings.dsn, 1, settings.timing) as pool:
        store = await open_request_store(pool, settings)
        assert not store.has_results
        request = (await store.request_aborts(["a"], grace=5))["a"]
        assert request.kill_at is not None
        assert (await store.read_aborts(["a"]))["a"].kill_in is not None
