"""What the tasks of every library do, so that no peer waits or looks in its own way."""

import asyncio
import time
from collections.abc import Callable

from .marks import mark

#: Seconds between two looks of a task that waits; what it waits for, at most.
NAP = 0.0005
LONG = 60.0

#: How often a check is measured.
TURNS = 7


def loop(key: str, is_aborted: Callable[[], bool]) -> None:
    """Look again and again, as both Celery libraries document it."""
    mark(key, "started")
    deadline = time.monotonic() + LONG
    while not is_aborted() and time.monotonic() < deadline:
        time.sleep(NAP)
    mark(key, "stopped")


async def until_cancelled(key: str) -> None:
    """Wait in a coroutine, which is cancelled."""
    mark(key, "started")
    try:
        await asyncio.sleep(LONG)
    except asyncio.CancelledError:
        mark(key, "stopped")
        raise
