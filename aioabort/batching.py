"""Sending queued items: the first one at once, those that follow closely in batches."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Never

import anyio


class BatchSender:
    """Calls a function after ``wake()``, and waits *gap* seconds between two calls.

    An item that is queued within the gap is sent together with others at its end. Not
    thread-safe: all methods belong to one event loop.
    """

    def __init__(self, gap: float) -> None:
        self._gap = gap
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Send the queued items soon; the caller queues them before this call."""
        self._wake.set()

    async def run(self, send: Callable[[], Awaitable[object]]) -> Never:
        """Call *send* now and after each ``wake()``, until it raises."""
        while True:
            # Before send() reads the queue: it may miss an item that is queued later.
            self._wake.clear()
            await send()
            await anyio.sleep(self._gap)
            await self._wake.wait()
