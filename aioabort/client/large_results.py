"""Results too large for the query that all waiters share.

Each is fetched alone and in parts, beside the query: neither its size nor a slow network
delays the waiters of other tasks. After an outage, it goes on with the next part.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Never

from aioabort.models import TaskRow

#: Bytes that are fetched at a time. A slow network needs less than the statement timeout
#: for them.
PART_SIZE = 1_000_000

#: ``RequestStore.read_part()``.
ReadPart = Callable[[str, str, int, int], Awaitable[tuple[int | None, bytes | None]]]


class LargeResult:
    """The row of a task, and what was fetched of its result and its traceback."""

    def __init__(self, row: TaskRow) -> None:
        self.row: TaskRow = row
        self._columns: dict[str, bytearray | None] = {"result": None, "traceback": None}
        self._to_fetch = list(self._columns)

    @property
    def size_left(self) -> int:
        """The number of bytes that are not fetched yet, roughly."""
        fetched = sum(len(value or b"") for value in self._columns.values())
        return (self.row.unread_size or 0) - fetched

    async def fetch(self, read_part: ReadPart) -> TaskRow | None:
        """Fetch all parts; return the complete row, or None if it has changed."""
        while self._to_fetch:
            if not await self.fetch_next(read_part):
                return None
        return self.complete_row()

    async def fetch_next(self, read_part: ReadPart) -> bool:
        """Fetch one part; return False if the row has changed since the first one."""
        column = self._to_fetch[0]
        value = self._columns[column]
        offset = len(value or b"")
        version, part = await read_part(self.row.task_id, column, offset, PART_SIZE)
        if version != self.row.version:
            return False
        if part is not None:
            if value is None:
                value = self._columns[column] = bytearray()
            value += part
        if part is None or len(part) < PART_SIZE:
            del self._to_fetch[0]
        if column == "result" and not self.size_left:
            # There is no traceback.
            self._to_fetch.clear()
        return True

    def complete_row(self) -> TaskRow | None:
        """Return the row with its result and its traceback; None if parts are missing."""
        if self._to_fetch:
            return None
        result, traceback = self._columns["result"], self._columns["traceback"]
        return replace(
            self.row,
            result=None if result is None else bytes(result),
            traceback=None if traceback is None else traceback.decode(),
            unread_size=None,
        )


class LargeResults:
    """The large results that coroutines wait for; the smallest are fetched first."""

    def __init__(self, is_awaited: Callable[[str], bool]) -> None:
        self._is_awaited = is_awaited
        self._results: dict[str, LargeResult] = {}
        self._wake = asyncio.Event()

    def add(self, row: TaskRow) -> None:
        """Fetch the result of *row*, unless that is under way already."""
        known = self._results.get(row.task_id)
        if known is not None and known.row.version == row.version:
            # Its abort request may have changed.
            known.row = row
            return
        self._results[row.task_id] = LargeResult(row)
        self._wake.set()

    async def run(
        self, read_part: ReadPart, deliver: Callable[[TaskRow], Awaitable[object]]
    ) -> Never:
        """Fetch results for ever, and call *deliver* with each complete row."""
        while True:
            for task_id in [*self._results]:
                if not self._is_awaited(task_id):
                    del self._results[task_id]
            if not self._results:
                self._wake.clear()
                await self._wake.wait()
                continue
            result = min(self._results.values(), key=lambda each: each.size_left)
            is_unchanged = await result.fetch_next(read_part)
            row = result.complete_row()
            if not is_unchanged or row is not None:
                # After a change, the next query of all waiters finds it.
                if self._results.get(result.row.task_id) is result:
                    del self._results[result.row.task_id]
                if is_unchanged and row is not None:
                    await deliver(row)
