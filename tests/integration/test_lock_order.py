"""Statements lock rows in the order of ids, so those that overlap do not deadlock."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, cast

import asyncpg
import pytest
from anyio import fail_after
from celery import Celery, states

from aioabort import AbortRequest
from aioabort.postgres.connection import Executor
from aioabort.postgres.request_store import (
    RequestStore,
    open_request_store_on_lent_pool,
)
from aioabort.settings import read_settings
from tests.integration.steps import end
from tests.support.waiting import BOUND, until

Database: TypeAlias = "asyncpg.Connection[Any]"
Requests: TypeAlias = list[AbortRequest]

#: Sorted as statements lock them. In most languages, b comes before C.
IDS = ["A", "C", "b", "d"]

WAITING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'
"""

STATEMENTS: dict[str, Callable[[RequestStore, Requests], Awaitable[object]]] = {
    "request_aborts": lambda store, requests: store.request_aborts(ids_of(requests)),
    "shorten_grace": lambda store, requests: store.shorten_grace(ids_of(requests), 9.0),
    "record_seen": lambda store, requests: store.record_seen(
        requests, [0.0] * len(requests), "node"
    ),
    "record_outcomes": lambda store, requests: store.record_outcomes(
        requests, ["aborted"] * len(requests), [0.0] * len(requests)
    ),
    "settle_requests": lambda store, requests: store.settle_requests(
        dict.fromkeys(ids_of(requests), "returned")
    ),
    "reset_to_aborted": lambda store, requests: store.reset_to_aborted(
        ids_of(requests)
    ),
}


def ids_of(requests: Requests) -> list[str]:
    return [request.task_id for request in requests]


async def requests_in_reverse(store: RequestStore) -> Requests:
    requests = await store.request_aborts(IDS)
    return [requests[task_id] for task_id in reversed(IDS)]


@pytest.mark.parametrize(
    ("name", "table"),
    [(name, "aioabort_request") for name in STATEMENTS if name != "reset_to_aborted"]
    + [(name, "celery_taskmeta") for name in ("request_aborts", "reset_to_aborted")],
)
async def test_rows_are_locked_in_the_order_of_ids(
    store: RequestStore, database: Database, name: str, table: str
) -> None:
    """A statement that waits for a row has locked the rows before it, and none after it.

    other: locks C | statement, with d, b, C, A: locks A, waits for C | other: b, d
    are free
    """
    requests = await requests_in_reverse(store)
    if name == "reset_to_aborted":
        await database.execute("UPDATE celery_taskmeta SET status = 'STARTED'")
    async with asyncio.TaskGroup() as group, database.transaction():
        await database.execute(f"SELECT FROM {table} WHERE task_id = 'C' FOR UPDATE")
        group.create_task(_run(name, store, requests))
        await until(lambda: database.fetchval(WAITING))
        free = await database.fetch(
            f"SELECT task_id FROM {table} WHERE task_id <> 'C' FOR UPDATE SKIP LOCKED"
        )
    assert sorted(row["task_id"] for row in free) == ["b", "d"]


async def test_rows_of_celery_are_locked_before_ours(
    store: RequestStore, database: Database
) -> None:
    """An abort that waits for our row holds all of Celery's rows.

    other: locks our A | abort of d, b, C, A: locks Celery's rows, waits for our A
    """
    requests = await requests_in_reverse(store)
    async with asyncio.TaskGroup() as group, database.transaction():
        await database.execute(
            "SELECT FROM aioabort_request WHERE task_id = 'A' FOR UPDATE"
        )
        group.create_task(_run("request_aborts", store, requests))
        await until(lambda: database.fetchval(WAITING))
        free = "SELECT FROM {} WHERE task_id <> 'A' FOR UPDATE SKIP LOCKED"
        ours = await database.fetch(free.format("aioabort_request"))
        celerys = await database.fetch(free.format("celery_taskmeta"))
    assert (len(celerys), len(ours)) == (0, 3)


async def _run(name: str, store: RequestStore, requests: Requests) -> None:
    with fail_after(BOUND):
        await STATEMENTS[name](store, requests)


@pytest.fixture
async def blunt_store(app: Celery) -> AsyncIterator[RequestStore]:
    """A store that waits for locks without end, and raises the error of a deadlock."""
    settings = read_settings(app)
    async with asyncpg.create_pool(settings.dsn.url, min_size=1, max_size=8) as pool:
        executor = cast("Executor", pool)
        store = await open_request_store_on_lent_pool(executor, settings)
        yield store.with_patience(0.0)


async def test_statements_that_overlap_do_not_deadlock(
    blunt_store: RequestStore,
) -> None:
    """Hundreds of calls at once, of all kinds, with the same tasks in any order.

    Neither a lock timeout nor a retry hides a deadlock from this test.
    """
    store = blunt_store
    chance = random.Random(0)
    ids = [f"{number:02}" for number in range(40)]
    requests = await store.request_aborts(ids, grace=9_999)

    async def call_often() -> None:
        for _ in range(60):
            some = [requests[id_] for id_ in chance.sample(ids, chance.randint(2, 30))]
            name = chance.choice(list(STATEMENTS))
            if name == "request_aborts":
                requests.update(await store.request_aborts(ids_of(some), grace=99.0))
            else:
                await STATEMENTS[name](store, some)
            await store.claim_overdue_kills(0.0)

    with fail_after(2 * BOUND):
        await asyncio.gather(*(call_often() for _ in range(8)))


async def test_an_existing_row_takes_no_value_of_the_sequence(
    app: Celery, store: RequestStore, database: Database
) -> None:
    """A task that has a row can be aborted when the sequence is used up."""
    await end(app, "started", None, states.STARTED)
    await database.execute("SELECT setval('task_id_sequence', 2147483647)")
    assert "started" in await store.request_aborts(["started"])
    assert await store.request_aborts(["started"]) == {}
    last = await database.fetchval("SELECT last_value FROM task_id_sequence")
    assert last == 2147483647
