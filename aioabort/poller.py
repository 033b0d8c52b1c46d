"""Decides which task ids are queried in PostgreSQL, and when.

An id is queried soon after a notification names it, and all ids are polled every few
seconds. A notification only says what to query first: the poll finds what notifications
missed, so a lost one delays an abort or a result, and loses none. Workers poll for the
tasks that they run, clients for the tasks whose results are awaited.
"""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from time import monotonic
from typing import Never

import anyio

#: With notifications the poll only finds what they missed: its interval is longer.
SLOWER_WHEN_NOTIFIED = 5

#: Ids a query; the event loop would stall while it decodes a larger answer.
BATCH_SIZE = 1_000

#: Seconds that ``run()`` sleeps while there are no ids; an added id wakes it.
IDLE_SLEEP = 86_400.0

#: Seconds over which all processes spread the poll that follows one notification.
POLL_ALL_SPREAD = 0.05

#: Seconds for which an id is young, without and with notifications.
YOUNG = 2.0
YOUNG_WHEN_NOTIFIED = 10.0

#: The pause after a poll, as a multiple of its duration: one client keeps a core of
#: PostgreSQL busy for a fifth of the time at most.
REST = 4.0

#: Returns the seconds until the next poll; takes the seconds since the youngest id was
#: added and the seconds that the previous poll took.
Pace = Callable[[float, float], float]


def steady_pace(interval: float) -> Pace:
    """Return the pace of a poll every *interval* seconds."""
    return lambda _age, _took: interval


def pace_without_notifications(interval: float) -> Pace:
    """Return a client's pace without notifications: *interval* seconds at most.

    Most waits are for short tasks: while an id is young, polls are faster. A poll of
    many ids is followed by a longer pause.
    """

    def pace(age: float, took: float) -> float:
        wanted = interval / (10 if age < YOUNG else 4)
        return min(interval, max(wanted, REST * took))

    return pace


def pace_with_notifications(interval: float) -> Pace:
    """Return a client's pace with notifications: five times *interval* at most."""
    return lambda age, _took: (
        interval * (2 if age < YOUNG_WHEN_NOTIFIED else SLOWER_WHEN_NOTIFIED)
    )


class PollSchedule:
    """Ids that are polled together, and the time of their next poll."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        #: When each id was added, the youngest last.
        self.ids: dict[str, float] = {}
        self.due_at: float = 0.0
        self._took = 0.0
        #: The earliest ``poll_by()`` since the latest poll began.
        self._requested_at = math.inf

    def add(self, task_id: str) -> None:
        """Poll *task_id* too; the next poll comes at the pace of a young id."""
        now = monotonic()
        self.ids.setdefault(task_id, now)
        self.due_at = min(self.due_at, now + self.pace(0.0, self._took))

    def poll_by(self, moment: float) -> None:
        """Have the next poll begin at *moment* at the latest."""
        self._requested_at = min(self._requested_at, moment)
        self.due_at = min(self.due_at, moment)

    def begin(self) -> None:
        """Record that a poll begins, which serves all earlier ``poll_by()``."""
        self._requested_at = math.inf

    def plan_next(self, took: float) -> None:
        """Set the time of the next poll, after one that took *took* seconds."""
        now = monotonic()
        self._took = took
        age = now - next(reversed(self.ids.values()), now)
        # Jitter only shortens the pause: the pace is what users are promised.
        jitter = random.uniform(0.8, 1.0)  # noqa: S311
        planned_at = now + self.pace(age, took) * jitter
        # A poll_by() during the poll asks for another one: the query under way may
        # have missed the reason for it.
        self.due_at = min(planned_at, self._requested_at)


class Poller:
    """Queries ids in batches: those that a notification names, and all at each poll.

    Ids passed to ``watch_changes()`` are polled at the *changes_pace* as well.
    ``run()`` begins a query *coalesce* seconds after the start of the previous one at
    the earliest.

    Not thread-safe: call all methods on the loop that runs ``run()``.
    """

    def __init__(
        self, pace: Pace, *, changes_pace: Pace | None = None, coalesce: float = 0.0
    ) -> None:
        self._all = PollSchedule(pace)
        self._changes = PollSchedule(changes_pace or pace)
        self._coalesce = coalesce
        self._due: dict[str, None] = {}
        self._due_with_next: dict[str, None] = {}
        #: The poll that is under way, and its ids that are not queried yet.
        self._poll: PollSchedule | None = None
        self._backlog: dict[str, None] = {}
        self._poll_began_at = 0.0
        self._is_backlogs_turn = False
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._all.ids)

    def add(self, task_id: str) -> None:
        """Query *task_id* now, and at every poll until ``remove()``."""
        self._all.add(task_id)
        self.poll_now((task_id,))

    def add_already_queried(self, task_id: str) -> None:
        """Query *task_id* from the next poll on: the caller sees to a query now."""
        was_idle = not self._all.ids
        self._all.add(task_id)
        if was_idle:
            # run() sleeps without a poll timer; wake it to set one.
            self._wake.set()

    def watch_changes(self, task_id: str) -> None:
        """Add *task_id*, and poll it at the changes pace until ``unwatch_changes()``."""
        self._changes.add(task_id)
        self.add(task_id)

    def remove(self, task_id: str) -> None:
        """Stop querying *task_id*; does nothing if it was not added."""
        for ids in (self._all.ids, self._due, self._due_with_next, self._backlog):
            ids.pop(task_id, None)
        self.unwatch_changes(task_id)

    def unwatch_changes(self, task_id: str) -> None:
        """Poll *task_id* at the pace of all ids again."""
        self._changes.ids.pop(task_id, None)

    def poll_with_next(self, task_id: str) -> None:
        """Query *task_id* together with the next ids that are queried."""
        if task_id in self._all.ids:
            self._due_with_next[task_id] = None

    def poll_now(self, task_ids: Iterable[str]) -> None:
        """Query those of *task_ids* that were added, now."""
        added = [task_id for task_id in task_ids if task_id in self._all.ids]
        if added:
            self._due.update(dict.fromkeys(added))
            self._wake.set()

    def on_notification(self, task_ids: Iterable[str] | None) -> None:
        """Query the ids that a notification names; None stands for all ids."""
        if task_ids is None:
            self.poll_all_soon()
        else:
            self.poll_now(task_ids)

    def poll_all_soon(self) -> None:
        """Poll within 0.05 seconds, at random: other processes have the same reason."""
        spread = random.uniform(0, POLL_ALL_SPREAD)  # noqa: S311
        self._poll_by(monotonic() + spread)

    def set_pace(self, pace: Pace) -> None:
        """Poll all ids at *pace* from now on."""
        self._all.pace = pace
        self._poll_by(monotonic() + pace(0.0, 0.0))

    async def run(self, query: Callable[[list[str]], Awaitable[None]]) -> Never:
        """Call *query* for ever with the ids that are due, 1,000 at most.

        Begins with a poll of all ids. An error of *query* ends it; the next ``run()``
        begins with all ids again.
        """
        self._poll = None
        self._backlog.clear()
        self._all.due_at = monotonic()
        queried_at = 0.0
        while True:
            await self._wait_until_due()
            if self._coalesce and not self._backlog:
                # The first id after a quiet time is queried at once.
                await anyio.sleep(max(0.0, queried_at + self._coalesce - monotonic()))
            self._begin_poll_if_due()
            queried_at = monotonic()
            if batch := self._next_batch():
                await query(batch)
            self._end_poll_if_done()

    async def _wait_until_due(self) -> None:
        while not self._due and not self._backlog:
            # Without ids there is no timer: an idle process sends no query.
            due_at = [poll.due_at for poll in (self._all, self._changes) if poll.ids]
            until_poll = min(due_at) - monotonic() if due_at else IDLE_SLEEP
            if until_poll <= 0:
                break
            self._wake.clear()
            # Every task's start waits here: a cancel scope would cost this loop a
            # fifth of the time of a query.
            timer = asyncio.get_running_loop().call_later(until_poll, self._wake.set)
            try:
                await self._wake.wait()
            finally:
                timer.cancel()

    def _begin_poll_if_due(self) -> None:
        if self._poll is not None:
            return
        now = monotonic()
        # A query of all ids counts as a poll, even if notifications made them due.
        if self._all.due_at <= now or len(self._due) == len(self._all.ids):
            self._poll = self._all
            self._all.begin()
            # The ids that notifications named come first.
            self._backlog = dict.fromkeys([*self._due, *self._all.ids])
            self._due.clear()
        elif self._changes.due_at <= now:
            self._poll = self._changes
            self._backlog = dict.fromkeys(self._changes.ids)
        self._poll_began_at = now

    def _next_batch(self) -> list[str]:
        self._due.update(self._due_with_next)
        self._due_with_next.clear()
        if len(self._due) + len(self._backlog) <= BATCH_SIZE:
            batch = [*(self._due | self._backlog)]
        else:
            # In turn, so that a long poll does not delay notified ids, and many
            # notifications do not delay the poll.
            self._is_backlogs_turn = not self._is_backlogs_turn or not self._due
            is_polling = self._is_backlogs_turn and self._backlog
            source = self._backlog if is_polling else self._due
            batch = list(islice(source, BATCH_SIZE))
        for task_id in batch:
            self._due.pop(task_id, None)
            self._backlog.pop(task_id, None)
        return batch

    def _end_poll_if_done(self) -> None:
        if self._poll is None or self._backlog:
            return
        took = monotonic() - self._poll_began_at
        self._poll.plan_next(took)
        if self._poll is self._all:
            self._changes.plan_next(took)
        self._poll = None

    def _poll_by(self, moment: float) -> None:
        self._all.poll_by(moment)
        self._wake.set()
