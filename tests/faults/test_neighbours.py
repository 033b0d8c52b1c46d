"""One task is in trouble, and the others must not pay for it."""

import threading
from statistics import median
from uuid import uuid4

import anyio
import psycopg
from anyio import to_thread

from aioabort import AbortClient
from tests.support.databases import query
from tests.support.waiting import until

from .rounds import Arena, run_round
from .workers import POLL_INTERVAL

#: Seconds from a request until its task sees it: at most, and half of the requests.
PROMISED, PROMISED_HALF = POLL_INTERVAL + 0.5, 0.05

#: How much longer it may take on a busy machine.
BUSY = 10

#: Characters of a result that takes its time to be stored.
HUGE = 64_000_000

#: An id that no PostgreSQL can hold.
POISONOUS = "poisonous\0id"

LOCK = {
    "result": "SELECT FROM celery_taskmeta WHERE task_id = ANY(%s) FOR UPDATE",
    "request": "SELECT FROM aioabort_request WHERE task_id = ANY(%s) FOR UPDATE",
}
UNDECODABLE = """
    INSERT INTO celery_taskmeta (id, task_id, status, result)
    VALUES (-1, %s, 'SUCCESS', 'no pickle')
"""
STORED = """
    SELECT count(*) FROM celery_taskmeta
    WHERE task_id = ANY(%s) AND status = 'SUCCESS'
"""
REMOVE = "DELETE FROM celery_taskmeta WHERE task_id = %s"


async def test_one_task_in_trouble(arena: Arena) -> None:
    """A row is locked, a result is huge, another cannot be decoded, an id be stored."""

    huge = [f"huge-{uuid4()}" for _ in arena.workers]

    async def inject(seconds: float) -> None:
        assert arena.load is not None
        publish_huge(arena, huge)
        publish_poisonous(arena)
        items, over = arena.load.items, threading.Event()
        locked = [item.task_id for item in items if item.ending is None][-2:]
        async with anyio.create_task_group() as group:
            group.start_soon(to_thread.run_sync, lock, arena, locked, over)
            group.start_soon(wait_for_undecodable, arena)
            await anyio.sleep(2 * seconds)
            over.set()

    result = await run_round(
        arena, "one task in trouble, of the others", inject, is_local=True
    )
    await until(lambda: query(arena.dsn, STORED, huge) == [(len(huge),)])
    half, longest = median(result.delays), max(result.delays)
    arena.notes.append(
        f"neighbours of a task in trouble: half of the requests seen in "
        f"{half * 1_000:.0f} ms (promised: {PROMISED_HALF * 1_000:.0f} ms), "
        f"all in {longest:.2f} s (promised: {PROMISED:g} s)"
    )
    assert half < BUSY * PROMISED_HALF
    assert longest < BUSY * PROMISED


def publish_huge(arena: Arena, ids: list[str]) -> None:
    """Have a result stored by each backend that takes its time."""
    for worker, task_id in zip(arena.workers, ids, strict=True):
        with arena.app(worker) as app:
            app.send_task("large", (HUGE,), task_id=task_id)


def publish_poisonous(arena: Arena) -> None:
    """Have a task run whose id would fail each poll that names it."""
    for worker in arena.workers:
        with arena.app(worker) as app:
            app.send_task("blind", (1.0,), task_id=POISONOUS, ignore_result=True)


def lock(arena: Arena, ids: list[str], over: threading.Event) -> None:
    """Lock the rows of the tasks until it is *over*."""
    with psycopg.connect(arena.dsn) as connection:
        for statement in LOCK.values():
            connection.execute(statement.encode(), [ids])
        over.wait()


async def wait_for_undecodable(arena: Arena) -> None:
    """Have a client wait for a result that cannot be decoded, beside one that can."""
    bad = str(uuid4())
    query(arena.dsn, UNDECODABLE, bad)
    with arena.app(arena.workers[0]) as app:
        async with AbortClient(app) as client:
            with anyio.fail_after(BUSY):
                try:
                    await client.wait(bad)
                except Exception:  # noqa: BLE001 - an error of its own
                    pass
                else:
                    raise AssertionError("it was decoded")
    query(arena.dsn, REMOVE, bad)
