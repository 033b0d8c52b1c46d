"""Everyone who awaits a task's end or its changes, served by one look for all of them.

A look costs the same for one as for a thousand, so nothing is asked for anybody alone.
"""

import asyncio
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol

from aioabort import telemetry
from aioabort.exceptions import ClientClosed, StoreError, StoreUnavailable
from aioabort.producer.pace import polling
from aioabort.reconnect import Connectivity, own
from aioabort.records import TaskRow
from aioabort.watcher import Watcher

#: Seconds; completions that are told of within them share one statement.
COALESCE = 0.005

#: Waiters that are woken before the loop gets to do anything else.
CHUNK = 200

Waiter = asyncio.Future[TaskRow | None]
Answer = TaskRow | Exception | None


class Source(Protocol):
    """Where the rows of tasks are found."""

    async def look(self, task_ids: list[str], closely: list[str]) -> dict[str, TaskRow]:
        """Return the rows of *task_ids* that have ended, and *closely*'s.

        The two have no id in common.
        """
        ...


class Hub:
    """The awaited ids, and the futures of those who await them."""

    def __init__(self, poll_interval: float) -> None:
        pace = polling(poll_interval)
        # No worker tells of what happens before the end, so that is always polled.
        self.watcher: Watcher = Watcher(pace, close_pace=pace, coalesce=COALESCE)
        self.health: Connectivity = Connectivity("aioabort client", poll_interval)
        #: How many there are who wait or watch.
        self.size: int = 0
        telemetry.waiting_at(self)
        self._ends: dict[str, set[Waiter]] = {}
        self._changes: dict[str, Changes] = {}
        self._is_closed = False

    async def finished(
        self, task_id: str, timeout: float | None = None
    ) -> TaskRow | None:
        """Return the row of *task_id* when it has ended, or None after *timeout* seconds.

        Raises StoreError when PostgreSQL refuses to tell; while it is away, goes on
        waiting.
        """
        waiter = self._new_waiter()
        self._join(task_id, waiter)
        timer = None
        if timeout is not None:
            # A cancel scope would cost more than all the rest of a waiter.
            timer = waiter.get_loop().call_later(timeout, _settle, waiter, None)
        try:
            return await waiter
        finally:
            if timer is not None:
                timer.cancel()
            self._leave(task_id, waiter)

    @asynccontextmanager
    async def awaiting(
        self, task_ids: Iterable[str]
    ) -> AsyncGenerator[dict[str, Waiter]]:
        """Await many for the time of the block; each of the futures gets a row.

        Or the StoreError with which PostgreSQL refuses to tell.
        """
        waiters: dict[str, Waiter] = {}
        try:
            for count, task_id in enumerate(dict.fromkeys(task_ids), 1):
                waiters[task_id] = self._await(task_id)
                if not count % CHUNK:
                    await asyncio.sleep(0)
            yield waiters
        finally:
            for waiter in waiters.values():
                waiter.cancel()

    @contextmanager
    def watching(self, task_id: str) -> Generator["View"]:
        """Watch *task_id* for the time of the block."""
        changes = self._changes.setdefault(task_id, Changes())
        changes.watchers += 1
        self.size += 1
        # The next row is news to this one, if not to the others.
        changes.row = None
        self.watcher.watch_closely(task_id)
        try:
            yield View(self, changes)
        finally:
            self.size -= 1
            changes.watchers -= 1
            if not changes.watchers:
                del self._changes[task_id]
                self.watcher.unwatch_closely(task_id)
                self._unwatch(task_id)

    async def news(self, changes: "Changes") -> None:
        """Return when there is another row."""
        waiter = self._new_waiter()
        changes.waiters.add(waiter)
        try:
            await waiter
        finally:
            changes.waiters.discard(waiter)

    @telemetry.timed("client")
    async def look(self, source: Source, task_ids: list[str]) -> None:
        """Wake those who await the tasks that have ended, or that have changed."""
        closely = [task_id for task_id in task_ids if task_id in self._changes]
        ends = [task_id for task_id in task_ids if task_id not in self._changes]
        try:
            rows = await source.look(ends, closely)
        except StoreUnavailable:
            raise
        except StoreError as error:
            await _wake((waiter, own(error)) for waiter in self._waiters(task_ids))
            return
        self.health.recovered()
        await _wake(self._answers(rows))

    def close(self) -> None:
        """Wake everybody with ClientClosed, which whoever comes later gets, too."""
        self._is_closed = True
        for waiter in self._waiters([*self._ends, *self._changes]):
            _settle(waiter, _closed())

    def _answers(
        self, rows: dict[str, TaskRow]
    ) -> Iterator[tuple[Waiter, TaskRow | None]]:
        for task_id, row in rows.items():
            changes = self._changes.get(task_id)
            if changes is not None and row != changes.row:
                changes.row = row
                yield from ((waiter, row) for waiter in list(changes.waiters))
            if row.is_finished:
                waiters = self._ends.get(task_id, ())
                yield from ((waiter, row) for waiter in list(waiters))

    def _waiters(self, task_ids: Iterable[str]) -> Iterator[Waiter]:
        for task_id in task_ids:
            yield from list(self._ends.get(task_id, ()))
            if task_id in self._changes:
                yield from list(self._changes[task_id].waiters)

    def _await(self, task_id: str) -> Waiter:
        """Return a future that gets the row of the end, and is forgotten then."""
        waiter = self._new_waiter()
        self._join(task_id, waiter)

        def forget(waiter: Waiter) -> None:
            if not waiter.cancelled():
                waiter.exception()  # nobody may ask for it
            self._leave(task_id, waiter)

        waiter.add_done_callback(forget)
        return waiter

    def _join(self, task_id: str, waiter: Waiter) -> None:
        self._ends.setdefault(task_id, set()).add(waiter)
        self.size += 1
        # Watched before it is looked at for the first time: an end between the two
        # is seen by one of them.
        self.watcher.watch(task_id)

    def _leave(self, task_id: str, waiter: Waiter) -> None:
        self.size -= 1
        waiters = self._ends[task_id]
        waiters.discard(waiter)
        if not waiters:
            del self._ends[task_id]
            self._unwatch(task_id)

    def _new_waiter(self) -> Waiter:
        if self._is_closed:
            raise _closed()
        return asyncio.get_running_loop().create_future()

    def _unwatch(self, task_id: str) -> None:
        if task_id not in self._ends and task_id not in self._changes:
            self.watcher.unwatch(task_id)


class Changes:
    """The latest row of a task, for all who watch it."""

    __slots__ = ("row", "waiters", "watchers")

    def __init__(self) -> None:
        #: None when there is a watcher who has seen no row yet.
        self.row: TaskRow | None = None
        self.watchers: int = 0
        #: Those of the watchers who have seen the row, and wait for another.
        self.waiters: set[Waiter] = set()


class View:
    """What one watcher gets to see of a task: the latest row, and each only once."""

    def __init__(self, hub: Hub, changes: Changes) -> None:
        self._hub = hub
        self._changes = changes
        self._seen: TaskRow | None = None

    async def next(self) -> TaskRow:
        """Return the latest row, when it is another one than the last time.

        Raises StoreError when PostgreSQL refuses to tell; while it is away, goes on
        waiting.
        """
        while self._changes.row is None or self._changes.row == self._seen:
            await self._hub.news(self._changes)
        self._seen = self._changes.row
        return self._seen


def _closed() -> ClientClosed:
    return ClientClosed("The client was closed")


async def _wake(answers: Iterable[tuple[Waiter, Answer]]) -> None:
    """Give the waiters their answers, some at a time."""
    for number, (waiter, answer) in enumerate(answers, 1):
        _settle(waiter, answer)
        if not number % CHUNK:
            await asyncio.sleep(0)


def _settle(waiter: Waiter, answer: Answer) -> None:
    if waiter.done():
        return
    if isinstance(answer, Exception):
        waiter.set_exception(answer)
    else:
        waiter.set_result(answer)
