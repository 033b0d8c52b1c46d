"""PostgreSQL is busy: other sessions hold locks, and statements fail that pass later."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import psycopg
from anyio import to_thread

from tests.support.databases import query

from .rounds import Arena, run_round

#: What sessions that begin in the fault have by default. Of two in a deadlock, the one
#: fails that has waited for so long.
TIMEOUTS = {
    "deadlock_timeout": "20ms",
    "lock_timeout": "50ms",
    "statement_timeout": "300ms",
}
ISOLATION = ("repeatable read", "serializable")

TERMINATE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""

#: Other sessions, and how long each keeps what it has locked.
LOCKERS = 4
HOLD = "SELECT pg_sleep(0.1)"

CHANGE = {
    "results": "UPDATE celery_taskmeta SET worker = worker WHERE task_id = ANY(%s)",
    "requests": "UPDATE aioabort_request SET reason = reason WHERE task_id = ANY(%s)",
}
LOCK_ALL = "LOCK TABLE celery_taskmeta, aioabort_request IN ACCESS EXCLUSIVE MODE"

#: How many of their transactions lock all rows.
LOCKING_ALL = 0.1


async def test_timeouts_and_deadlocks(arena: Arena) -> None:
    """Statements are cancelled that wait for the locks of other sessions."""

    async def inject(seconds: float) -> None:
        with defaults(arena, TIMEOUTS):
            await lock_for(arena, seconds)

    await run_round(arena, "PostgreSQL busy, timeouts and deadlocks", inject)


async def test_isolation(arena: Arena) -> None:
    """Statements fail that meet the changes of other sessions."""

    async def inject(seconds: float) -> None:
        for level in ISOLATION:
            with defaults(arena, {"default_transaction_isolation": level}):
                await lock_for(arena, seconds)

    await run_round(arena, "PostgreSQL busy, serialization failures", inject)


async def lock_for(arena: Arena, seconds: float) -> None:
    """Lock rows and tables, and change rows, of requests that are under way."""
    stopped = threading.Event()
    async with anyio.create_task_group() as group:
        for number in range(LOCKERS):
            group.start_soon(to_thread.run_sync, lock, arena, number, stopped)
        await anyio.sleep(seconds)
        stopped.set()


@contextmanager
def defaults(arena: Arena, settings: dict[str, str]) -> Iterator[None]:
    """Give all sessions other defaults, for the time of the block."""
    for name, value in settings.items():
        query(arena.dsn, f"ALTER DATABASE {arena.database} SET {name} = '{value}'")
    query(arena.dsn, TERMINATE)
    try:
        yield
    finally:
        for name in settings:
            query(arena.dsn, f"ALTER DATABASE {arena.database} RESET {name}")
        query(arena.dsn, TERMINATE)


def lock(arena: Arena, number: int, stopped: threading.Event) -> None:
    """Lock rows of tasks in no order, until it is *stopped*."""
    assert arena.load is not None
    chance = random.Random(f"{arena.seed} {number}")
    # Of two sessions in a deadlock, the other one is to fail.
    options = "-c deadlock_timeout=10s -c lock_timeout=2s -c statement_timeout=3s"
    with psycopg.connect(arena.dsn, options=options) as connection:
        while not stopped.is_set():
            ids = [item.task_id for item in arena.load.items[-40:]]
            chance.shuffle(ids)
            try:
                if chance.random() < LOCKING_ALL:
                    connection.execute(LOCK_ALL)
                else:
                    for table in chance.sample(sorted(CHANGE), 2):
                        connection.execute(CHANGE[table].encode(), [ids[:10]])
                connection.execute(HOLD)
                connection.commit()
            except psycopg.OperationalError:
                connection.rollback()
