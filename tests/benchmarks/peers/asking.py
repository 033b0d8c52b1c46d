"""What is written by hand: each waiter asks again and again, through a pool."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from ..completer import leave_as_it_is

NAME = "asyncio poll per waiter"

CONNECTIONS = 8
#: Seconds, as in Celery's own get().
INTERVAL = 0.5

ASK = "SELECT status, result FROM celery_taskmeta WHERE task_id = $1"


@asynccontextmanager
async def polling(
    dsn: str, _waiters: int
) -> AsyncGenerator[Callable[[str], Awaitable[Any]]]:
    """Wait by asking for the row of one task every half a second."""
    async with asyncpg.create_pool(
        dsn, min_size=1, max_size=CONNECTIONS, reset=leave_as_it_is
    ) as pool:

        async def wait(task_id: str) -> Any:
            while True:
                row = await pool.fetchrow(ASK, task_id)
                if row is not None and row["status"] == "SUCCESS":
                    return row["result"]
                await asyncio.sleep(INTERVAL)

        yield wait
