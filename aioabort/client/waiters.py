"""The waiters of one client: coroutines that await the end or the changes of tasks.

A query costs PostgreSQL about the same for one id as for a thousand, so all waiters
share the queries of one poller.
"""

import asyncio
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Protocol

from aioabort.client.large_results import LargeResults
from aioabort.client.result_sources import ResultSource
from aioabort.exceptions import ClientClosed, StoreError, StoreUnavailable
from aioabort.halving import in_parts
from aioabort.models import TaskRow
from aioabort.poller import Poller, pace_without_notifications
from aioabort.reconnect import Connectivity, copy_for_waiter
from aioabort.settings import Settings
from aioabort.telemetry import instruments

#: Waiters that are woken before the event loop runs other code.
WAKE_BATCH = 200

Waiter = asyncio.Future[TaskRow | None]

#: The row of a task that has ended, or the error for which the row cannot be read.
Ending = TaskRow | Exception


class AwaitedTasks(Protocol):
    """Gets the ids that coroutines wait for, to listen for them alone."""

    def add(self, task_id: str) -> bool:
        """Listen for *task_id*; return whether it will be queried when that is so."""
        ...

    def remove(self, task_id: str) -> None:
        """Listen no more for *task_id*."""
        ...


class Waiters:
    """Registers waiters by task id, and wakes them with the rows that a query finds."""

    def __init__(self, settings: Settings) -> None:
        pace = pace_without_notifications(settings.poll_interval)
        # No worker notifies clients of changes before the end: they need the poll.
        self.poller: Poller = Poller(
            pace, changes_pace=pace, coalesce=settings.timing.coalesce
        )
        self.connectivity: Connectivity = Connectivity(
            "aioabort client", settings.poll_interval
        )
        #: Set if a source of notifications has to know what is awaited.
        self.awaited_tasks: AwaitedTasks | None = None
        #: How many coroutines await an end or watch changes.
        self.size: int = 0
        instruments().count_waiters(self)
        self._awaiting_end: dict[str, set[Waiter]] = {}
        self._watched: dict[str, WatchedTask] = {}
        self._queries = 0
        self._is_closed = False
        #: The results that the shared query leaves out.
        self.large_results: LargeResults = LargeResults(self._is_awaited)

    async def wait_for_end(
        self, task_id: str, timeout: float | None = None
    ) -> TaskRow | None:
        """Return the row of *task_id* when it has ended, or None after *timeout* seconds.

        Raises StoreError if PostgreSQL refuses the query. Keeps waiting while
        PostgreSQL is away or busy.
        """
        waiter = self._new_waiter()
        self._register(task_id, waiter)
        timer = None
        if timeout is not None:
            # A cancel scope would cost more than the rest of this method.
            timer = waiter.get_loop().call_later(timeout, _wake, waiter, None)
        try:
            return await waiter
        finally:
            if timer is not None:
                timer.cancel()
            self._unregister(task_id, waiter)

    @asynccontextmanager
    async def waiting_for(
        self, task_ids: Iterable[str]
    ) -> AsyncGenerator[dict[str, Waiter]]:
        """Await the ends of many tasks in the block, with one future for each id.

        A future gets the row of its task, or the StoreError with which PostgreSQL
        refuses the query.
        """
        waiters: dict[str, Waiter] = {}
        try:
            for count, task_id in enumerate(dict.fromkeys(task_ids), 1):
                waiters[task_id] = self._new_registered_waiter(task_id)
                if not count % WAKE_BATCH:
                    await asyncio.sleep(0)
            yield waiters
        finally:
            for waiter in waiters.values():
                waiter.cancel()

    @contextmanager
    def watching(self, task_id: str) -> Generator["ChangeReader"]:
        """Watch the changes of *task_id* in the block."""
        watched = self._watched.setdefault(task_id, WatchedTask())
        watched.readers += 1
        self.size += 1
        # The new reader gets the next row, even if it is no change for the others.
        watched.row = None
        # A query that is under way may have read before the abort whose effect the new
        # reader looks for.
        watched.fresh_from = self._queries + 1
        if self.awaited_tasks is not None:
            self.awaited_tasks.add(task_id)
        self.poller.watch_changes(task_id)
        try:
            yield ChangeReader(self, watched)
        finally:
            self.size -= 1
            watched.readers -= 1
            if not watched.readers:
                del self._watched[task_id]
                self.poller.unwatch_changes(task_id)
                self._remove_if_unused(task_id)

    async def wait_for_change(self, watched: "WatchedTask") -> None:
        """Return when a query has found another row of the task."""
        waiter = self._new_waiter()
        watched.waiters.add(waiter)
        try:
            await waiter
        finally:
            watched.waiters.discard(waiter)

    async def query(self, source: ResultSource, task_ids: list[str]) -> None:
        """Read *task_ids* from *source*; wake the waiters of ended and changed tasks.

        If PostgreSQL refuses the query because of some ids, their waiters alone get the
        error.
        """
        self._queries += 1
        query = self._queries

        async def read(part: Sequence[str]) -> dict[str, TaskRow]:
            watched = [task_id for task_id in part if task_id in self._watched]
            awaited = [task_id for task_id in part if task_id not in self._watched]
            with instruments().polling("client"):
                return await source.read_for_waiters(awaited, watched)

        try:
            answers = await in_parts(task_ids, read)
        except StoreUnavailable:
            raise
        except StoreError as error:
            await self._wake_with_error(task_ids, error)
            return
        self.connectivity.recovered()
        for rows in answers.results:
            await _wake_all(self._waiters_with_rows(rows, query))
        for task_id, refusal in answers.failed:
            await self._wake_with_error((task_id,), refusal)

    async def deliver(self, row: TaskRow) -> None:
        """Wake the waiters of the task with its complete row."""
        await _wake_all(self._waiters_with_rows({row.task_id: row}, self._queries))

    def close(self) -> None:
        """Wake all waiters with ClientClosed; later ones raise it at once."""
        self._is_closed = True
        for waiter in self._waiters_for([*self._awaiting_end, *self._watched]):
            _wake(waiter, _client_closed())

    async def _wake_with_error(
        self, task_ids: Iterable[str], error: StoreError
    ) -> None:
        waiters = self._waiters_for(task_ids)
        await _wake_all((waiter, copy_for_waiter(error)) for waiter in waiters)

    def _waiters_with_rows(
        self, rows: dict[str, TaskRow], query: int
    ) -> Iterator[tuple[Waiter, TaskRow]]:
        for task_id, found in rows.items():
            watched = self._watched.get(task_id)
            row = self._complete_row(found, watched)
            if row is None:
                continue
            if watched is not None and watched.takes(row, query):
                watched.row = row
                yield from ((waiter, row) for waiter in list(watched.waiters))
            if row.is_finished:
                waiters = self._awaiting_end.get(task_id, ())
                yield from ((waiter, row) for waiter in list(waiters))

    def _complete_row(
        self, row: TaskRow, watched: "WatchedTask | None"
    ) -> TaskRow | None:
        """Return *row* with its result; None if that is large, and must be fetched."""
        if row.unread_size is None:
            return row
        known = watched.row if watched is not None else None
        if known is None or known.version != row.version:
            self.large_results.add(row)
            return None
        # Only the abort request may have changed.
        return replace(
            row, result=known.result, traceback=known.traceback, unread_size=None
        )

    def _waiters_for(self, task_ids: Iterable[str]) -> Iterator[Waiter]:
        for task_id in task_ids:
            yield from list(self._awaiting_end.get(task_id, ()))
            if task_id in self._watched:
                yield from list(self._watched[task_id].waiters)

    def _new_waiter(self) -> Waiter:
        if self._is_closed:
            raise _client_closed()
        return asyncio.get_running_loop().create_future()

    def _new_registered_waiter(self, task_id: str) -> Waiter:
        """Return a future for the end of the task; it unregisters itself when done."""
        waiter = self._new_waiter()
        self._register(task_id, waiter)

        def unregister(waiter: Waiter) -> None:
            if not waiter.cancelled():
                # Otherwise asyncio logs an error that the caller did not retrieve.
                waiter.exception()
            self._unregister(task_id, waiter)

        waiter.add_done_callback(unregister)
        return waiter

    def _register(self, task_id: str, waiter: Waiter) -> None:
        self._awaiting_end.setdefault(task_id, set()).add(waiter)
        self.size += 1
        # Before the first query: it finds a task that has ended by then, and a
        # notification or the poll finds one that ends later.
        if self.awaited_tasks is not None and self.awaited_tasks.add(task_id):
            self.poller.add_already_queried(task_id)
        else:
            self.poller.add(task_id)

    def _unregister(self, task_id: str, waiter: Waiter) -> None:
        self.size -= 1
        waiters = self._awaiting_end[task_id]
        waiters.discard(waiter)
        if not waiters:
            del self._awaiting_end[task_id]
            self._remove_if_unused(task_id)

    def _is_awaited(self, task_id: str) -> bool:
        return task_id in self._awaiting_end or task_id in self._watched

    def _remove_if_unused(self, task_id: str) -> None:
        if not self._is_awaited(task_id):
            self.poller.remove(task_id)
            if self.awaited_tasks is not None:
                self.awaited_tasks.remove(task_id)


class WatchedTask:
    """The latest row of a task, shared by all who read its changes."""

    __slots__ = ("fresh_from", "readers", "row", "waiters")

    def __init__(self) -> None:
        #: The number of the first query that began after the latest reader.
        self.fresh_from: int = 0
        #: None while there is a reader that has not got a row yet.
        self.row: TaskRow | None = None
        self.readers: int = 0
        #: The readers that have got the row and wait for another.
        self.waiters: set[Waiter] = set()

    def takes(self, row: TaskRow, query: int) -> bool:
        """Whether *row* of the query with this number is a change for the readers."""
        return query >= self.fresh_from and row != self.row


class ChangeReader:
    """Reads the changes of a task: always the latest row, and no row twice."""

    def __init__(self, waiters: Waiters, watched: WatchedTask) -> None:
        self._waiters = waiters
        self._watched = watched
        self._previous: TaskRow | None = None

    async def next_row(self) -> TaskRow:
        """Return the latest row as soon as it differs from the previous one.

        Raises StoreError if PostgreSQL refuses the query. Keeps waiting while
        PostgreSQL is away or busy.
        """
        while self._watched.row is None or self._watched.row == self._previous:
            await self._waiters.wait_for_change(self._watched)
        self._previous = self._watched.row
        return self._previous


def _client_closed() -> ClientClosed:
    return ClientClosed("The client was closed")


async def _wake_all(waiters: Iterable[tuple[Waiter, Ending]]) -> None:
    """Wake each waiter with its row or error, and let other code run in between."""
    for count, (waiter, ending) in enumerate(waiters, 1):
        _wake(waiter, ending)
        if not count % WAKE_BATCH:
            await asyncio.sleep(0)


def _wake(waiter: Waiter, ending: Ending | None) -> None:
    if waiter.done():
        return
    if isinstance(ending, Exception):
        waiter.set_exception(ending)
    else:
        waiter.set_result(ending)
