"""Watched task ids: looked at soon after a hint, and all of them every few seconds.

A hint (a notification) only says where to look first. What makes waiting correct is
the look at everything, so a lost notification costs time and nothing else. Used by
both sides: a worker watches the ids that it runs, a client the ids that it awaits.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from time import monotonic
from typing import Never

import anyio

#: With notifications the poll is only the safety net.
SLOWER_WHEN_NOTIFIED = 5

#: Ids a statement; a longer one would stall the event loop while it is decoded.
BATCH = 1_000

#: Seconds: a day without anything to watch is followed by another.
FOREVER = 86_400.0

#: Seconds within which a "look at everything" of all processes is spread out.
SPREAD = 0.05


class Watcher:
    """Decides which ids are looked at and when.

    Not thread-safe: all methods belong to the loop that runs ``run()``.
    """

    def __init__(self, interval: float, coalesce: float = 0.0) -> None:
        self._interval = interval
        self._coalesce = coalesce
        self._watched: dict[str, None] = {}
        self._due: dict[str, None] = {}
        self._deferred: dict[str, None] = {}
        self._poll_at = 0.0
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._watched)

    def watch(self, task_id: str) -> None:
        """Look at *task_id* now, and again at every poll until ``unwatch()``."""
        self._watched[task_id] = None
        self.hint((task_id,))

    def unwatch(self, task_id: str) -> None:
        """Forget *task_id*; an id that is not watched is no error."""
        self._watched.pop(task_id, None)
        self._due.pop(task_id, None)
        self._deferred.pop(task_id, None)

    def defer(self, task_id: str) -> None:
        """Look at *task_id* together with whatever is looked at next."""
        if task_id in self._watched:
            self._deferred[task_id] = None

    def hint(self, task_ids: Iterable[str]) -> None:
        """Look at those of *task_ids* that are watched, now."""
        watched = [task_id for task_id in task_ids if task_id in self._watched]
        if watched:
            self._due.update(dict.fromkeys(watched))
            self._wake.set()

    def on_hint(self, task_ids: Iterable[str] | None) -> None:
        """Take a notification: ids to look at, or None for everything."""
        if task_ids is None:
            self.hint_all()
        else:
            self.hint(task_ids)

    def hint_all(self) -> None:
        """Look at everything soon: not at once, as every other process will too."""
        spread = random.uniform(0, SPREAD)  # noqa: S311
        self._poll_by(monotonic() + spread)

    def pace(self, interval: float) -> None:
        """Poll every *interval* seconds from now on."""
        self._interval = interval
        self._poll_by(monotonic() + interval)

    async def run(self, look: Callable[[list[str]], Awaitable[None]]) -> Never:
        """Have *look* look, for ever, starting with everything, at 1,000 ids at most.

        What *look* raises ends it; the next ``run()`` starts with everything again.
        """
        self._poll_at = monotonic()
        while True:
            await self._wait_until_due()
            if self._coalesce:
                await anyio.sleep(self._coalesce)
            await self._look_at_due(look)

    async def _wait_until_due(self) -> None:
        while not self._due:
            # Nothing watched, no timer: an idle process sends no statement.
            until_poll = self._poll_at - monotonic() if self._watched else FOREVER
            if until_poll <= 0:
                break
            self._wake.clear()
            # On the path of every task's start, where a cancel scope would be a
            # fifth of what a look costs this loop.
            timer = asyncio.get_running_loop().call_later(until_poll, self._wake.set)
            try:
                await self._wake.wait()
            finally:
                timer.cancel()
        if self._poll_at <= monotonic():
            self._due.update(self._watched)

    async def _look_at_due(self, look: Callable[[list[str]], Awaitable[None]]) -> None:
        self._due.update(self._deferred)
        self._deferred.clear()
        if len(self._due) == len(self._watched):
            jitter = random.uniform(0.8, 1.2)  # noqa: S311
            self._poll_at = monotonic() + self._interval * jitter
        while self._due:
            batch = list(islice(self._due, BATCH))
            for task_id in batch:
                del self._due[task_id]
            await look(batch)

    def _poll_by(self, moment: float) -> None:
        self._poll_at = min(self._poll_at, moment)
        self._wake.set()
