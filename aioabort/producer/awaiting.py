"""Awaiting the ends of tasks: of one, and of many as they come."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from aioabort.exceptions import WaitTimeout
from aioabort.producer.codec import value_of
from aioabort.producer.connections import Connections
from aioabort.producer.hub import CHUNK
from aioabort.records import TaskRow
from aioabort.watcher import BATCH


class Awaiting:
    """Looks at tasks and awaits them, over the connections of a client."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def row(self, task_id: str) -> TaskRow:
        """Return what is stored of the task now."""
        rows = await self._connections.results.snapshots([task_id])
        return rows.get(task_id) or TaskRow(task_id=task_id)

    async def value(self, task_id: str, timeout: float | None) -> Any:
        """Return the task's value when it has ended, or raise the error that ended it."""
        self._connections.results.check_readable()
        if timeout is not None and timeout <= 0:
            now = await self.row(task_id)
            row = now if now.is_finished else None
        else:
            row = await self._connections.hub.finished(task_id, timeout)
        if row is None:
            raise self.late(task_id, timeout)
        return self.value_of(row)

    async def values(
        self, task_ids: Sequence[str], timeout: float | None, *, return_exceptions: bool
    ) -> list[Any]:
        """Return the values of the tasks, in order, when all have ended."""
        values: list[Any] = [None] * len(task_ids)
        async with aclosing(self.ends(task_ids, timeout)) as ends:
            async for number, end in ends:
                try:
                    values[number] = self.value_of(end)
                except Exception as error:
                    if not return_exceptions:
                        raise
                    values[number] = error
        return values

    async def ends(
        self, task_ids: Sequence[str], timeout: float | None
    ) -> AsyncGenerator[tuple[int, TaskRow | Exception]]:
        """Yield, for each task that has ended, its number in *task_ids* and its row.

        Or the StoreError for which its end cannot be told. Raises WaitTimeout after
        *timeout* seconds.
        """
        self._connections.results.check_readable()
        is_one_look = timeout is not None and timeout <= 0
        look = self._look(task_ids) if is_one_look else self._wait(task_ids, timeout)
        missing = dict.fromkeys(range(len(task_ids)))
        async with aclosing(look) as ends:
            async for number, end in ends:
                del missing[number]
                yield number, end
        for number in missing:
            raise self.late(task_ids[number], timeout)

    def value_of(self, end: TaskRow | Exception) -> Any:
        """Return the value of a task that has ended, or raise the error that ended it."""
        if isinstance(end, Exception):
            raise end
        return value_of(self._connections.results.decode(end))

    def late(
        self, task_id: str, timeout: float | None, verb: str = "end"
    ) -> WaitTimeout:
        """Return the error for a task that did not *verb* in time."""
        trouble = self._connections.hub.health.trouble
        error = WaitTimeout(task_id, timeout or 0, str(trouble or ""), verb)
        error.__cause__ = trouble
        return error

    async def _look(
        self, task_ids: Sequence[str]
    ) -> AsyncGenerator[tuple[int, TaskRow]]:
        """Yield those that have ended by now."""
        for first in range(0, len(task_ids), BATCH):
            batch = task_ids[first : first + BATCH]
            rows = await self._connections.results.snapshots(batch)
            for number, task_id in enumerate(batch, first):
                row = rows.get(task_id)
                if row is not None and row.is_finished:
                    yield number, row

    async def _wait(
        self, task_ids: Sequence[str], timeout: float | None
    ) -> AsyncGenerator[tuple[int, TaskRow | Exception]]:
        """Yield those that end within *timeout* seconds, as they come."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        ended: asyncio.Queue[int] = asyncio.Queue()
        async with self._connections.hub.awaiting(task_ids) as waiters:
            for number, task_id in enumerate(task_ids):
                waiters[task_id].add_done_callback(partial(_put, ended, number))
            for count in range(1, len(task_ids) + 1):
                if not count % CHUNK:
                    # However many have ended, others get their turn.
                    await asyncio.sleep(0)
                try:
                    async with asyncio.timeout_at(deadline):
                        number = await ended.get()
                except TimeoutError:
                    return
                yield number, _answer(waiters[task_ids[number]])


def _put(numbers: asyncio.Queue[int], number: int, _: object) -> None:
    numbers.put_nowait(number)


def _answer(waiter: asyncio.Future[Any]) -> TaskRow | Exception:
    error: Any = waiter.exception()
    answer: TaskRow | Exception = error or waiter.result()
    return answer
