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

#: Seconds between two polls, by the age of the youngest id and the duration of the
#: last poll, both in seconds.
Pace = Callable[[float, float], float]


def steady(interval: float) -> Pace:
    """Return the pace of a poll every *interval* seconds."""
    return lambda _age, _took: interval


class Poll:
    """Ids that are all looked at, again and again."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        #: When each was added, the youngest last.
        self.ids: dict[str, float] = {}
        self.due_at: float = 0.0
        self._took = 0.0

    def add(self, task_id: str) -> None:
        """Poll *task_id* too, and at the pace of a young one."""
        now = monotonic()
        self.ids.setdefault(task_id, now)
        self.due_at = min(self.due_at, now + self.pace(0.0, self._took))

    def plan(self, took: float) -> None:
        """Set the time of the next poll, after one that took *took* seconds."""
        now = monotonic()
        self._took = took
        age = now - next(reversed(self.ids.values()), now)
        # Never longer than the pace: that is a promise.
        jitter = random.uniform(0.8, 1.0)  # noqa: S311
        self.due_at = now + self.pace(age, took) * jitter


class Watcher:
    """Decides which ids are looked at and when.

    Not thread-safe: all methods belong to the loop that runs ``run()``.
    """

    def __init__(
        self, pace: Pace, *, close_pace: Pace | None = None, coalesce: float = 0.0
    ) -> None:
        self._all = Poll(pace)
        self._close = Poll(close_pace or pace)
        self._coalesce = coalesce
        self._due: dict[str, None] = {}
        self._deferred: dict[str, None] = {}
        #: What is left of the poll that is under way.
        self._backlog: dict[str, None] = {}
        self._poll: Poll | None = None
        self._polled_from = 0.0
        self._is_backlogs_turn = False
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._all.ids)

    def watch(self, task_id: str) -> None:
        """Look at *task_id* now, and again at every poll until ``unwatch()``."""
        self._all.add(task_id)
        self.hint((task_id,))

    def watch_from_now(self, task_id: str) -> None:
        """Watch *task_id*, which is being looked at: the first time at the next poll."""
        was_idle = not self._all.ids
        self._all.add(task_id)
        if was_idle:
            # Sets the timer of the poll.
            self._wake.set()

    def watch_closely(self, task_id: str) -> None:
        """Watch *task_id*, and poll it at the close pace until ``unwatch_closely()``."""
        self._close.add(task_id)
        self.watch(task_id)

    def unwatch(self, task_id: str) -> None:
        """Forget *task_id*; an id that is not watched is no error."""
        for ids in (self._all.ids, self._due, self._deferred, self._backlog):
            ids.pop(task_id, None)
        self.unwatch_closely(task_id)

    def unwatch_closely(self, task_id: str) -> None:
        """Go on watching *task_id* as all others."""
        self._close.ids.pop(task_id, None)

    def defer(self, task_id: str) -> None:
        """Look at *task_id* together with whatever is looked at next."""
        if task_id in self._all.ids:
            self._deferred[task_id] = None

    def hint(self, task_ids: Iterable[str]) -> None:
        """Look at those of *task_ids* that are watched, now."""
        watched = [task_id for task_id in task_ids if task_id in self._all.ids]
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

    def pace(self, pace: Pace) -> None:
        """Poll at *pace* from now on."""
        self._all.pace = pace
        self._poll_by(monotonic() + pace(0.0, 0.0))

    async def run(self, look: Callable[[list[str]], Awaitable[None]]) -> Never:
        """Have *look* look, for ever, starting with everything, at 1,000 ids at most.

        What *look* raises ends it; the next ``run()`` starts with everything again.
        """
        self._poll = None
        self._backlog.clear()
        self._all.due_at = monotonic()
        looked_at = 0.0
        while True:
            await self._wait_until_due()
            if self._coalesce and not self._backlog:
                # At once if it was quiet: the first hint is not held up by others.
                await anyio.sleep(max(0.0, looked_at + self._coalesce - monotonic()))
            self._begin_poll()
            looked_at = monotonic()
            if batch := self._next_batch():
                await look(batch)
            self._end_poll()

    async def _wait_until_due(self) -> None:
        while not self._due and not self._backlog:
            # Nothing watched, no timer: an idle process sends no statement.
            due_at = [poll.due_at for poll in (self._all, self._close) if poll.ids]
            until_poll = min(due_at) - monotonic() if due_at else FOREVER
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

    def _begin_poll(self) -> None:
        """Begin the poll that is due; a look at all that there is counts as one."""
        if self._poll is not None:
            return
        now = monotonic()
        if self._all.due_at <= now or len(self._due) == len(self._all.ids):
            self._poll = self._all
            # First those that somebody has hinted at.
            self._backlog = dict.fromkeys([*self._due, *self._all.ids])
            self._due.clear()
        elif self._close.due_at <= now:
            self._poll = self._close
            self._backlog = dict.fromkeys(self._close.ids)
        self._polled_from = now

    def _next_batch(self) -> list[str]:
        self._due.update(self._deferred)
        self._deferred.clear()
        if len(self._due) + len(self._backlog) <= BATCH:
            batch = [*(self._due | self._backlog)]
        else:
            # In turn: a long poll does not hold up a hint, nor many hints the poll.
            self._is_backlogs_turn = not self._is_backlogs_turn or not self._due
            is_polling = self._is_backlogs_turn and self._backlog
            batch = list(islice(self._backlog if is_polling else self._due, BATCH))
        for task_id in batch:
            self._due.pop(task_id, None)
            self._backlog.pop(task_id, None)
        return batch

    def _end_poll(self) -> None:
        if self._poll is None or self._backlog:
            return
        took = monotonic() - self._polled_from
        self._poll.plan(took)
        if self._poll is self._all:
            self._close.plan(took)
        self._poll = None

    def _poll_by(self, moment: float) -> None:
        self._all.due_at = min(self._all.due_at, moment)
        self._wake.set()
