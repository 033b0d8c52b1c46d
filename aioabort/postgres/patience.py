"""Repeating a statement that PostgreSQL cannot run at the moment."""

from time import monotonic
from typing import Any, Final

import asyncpg
from anyio import sleep

from aioabort.exceptions import StoreBusy
from aioabort.postgres.connection import Executor
from aioabort.postgres.errors import driver_errors, was_in_conflict, was_rolled_back
from aioabort.reconnect import Backoff

#: Seconds between two tries; each pause is a random part of that.
FIRST_PAUSE: Final = 0.02
LONGEST_PAUSE: Final = 0.5


async def fetch_patiently(
    executor: Executor, patience: float, query: str, *args: Any, **options: Any
) -> list[asyncpg.Record]:
    """Run *query*, again while PostgreSQL is busy, and return its rows.

    No try begins later than *patience* seconds after the first. The executor is free
    for other statements between two tries. Raises StoreBusy after the last try,
    StoreUnavailable if PostgreSQL cannot be reached, and StoreError if it refuses.
    """
    began_at = monotonic()
    pauses = Backoff(FIRST_PAUSE, LONGEST_PAUSE, jitter=True)
    is_first = True
    while True:
        try:
            with driver_errors():
                return await executor.fetch(query, *args, **options)
        except StoreBusy as error:
            if not was_rolled_back(error):
                raise
            # What was in the way of the first try is over, and may be so for good.
            pause = 0.0 if is_first and was_in_conflict(error) else pauses.next_delay()
            if monotonic() + pause > began_at + patience:
                raise
        is_first = False
        await sleep(pause)
