"""Results that Celery keeps outside PostgreSQL: in Redis, MySQL, SQLite, a cache, ...

The requests to abort the tasks are in PostgreSQL.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any, Final

from celery import states

from aioabort.client.decoding import from_meta
from aioabort.exceptions import ResultsElsewhere, StoreUnavailable
from aioabort.external.readings import (
    Meta,
    Reading,
    ResultReader,
    nothing_stored,
    why_unreadable,
)
from aioabort.models import ABORTED, TaskRow, TaskSnapshot
from aioabort.postgres.request_store import RequestStore

#: After a read that was late, the part of the timeout that the next ones get.
SHORTER_WHEN_LATE = 0.1

#: Rows that are made before the event loop runs other code.
ROW_BATCH: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecodedRow(TaskRow):
    """A task as Celery's backend returns it, with its result decoded.

    Rows are compared as text: each read makes a new exception of the same result.
    """

    meta: Meta
    error: Exception | None = None

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, DecodedRow)
            and TaskRow.__eq__(self, other)
            and _text_of(self) == _text_of(other)
        )

    def __hash__(self) -> int:
        return TaskRow.__hash__(self)


class ExternalResults:
    """Reads results from Celery's own backend, and their requests from PostgreSQL."""

    def __init__(
        self, store: RequestStore, backend: Any, reader: ResultReader, timeout: float
    ) -> None:
        self._store = store
        self._backend = backend
        self._reader: Final = reader
        self._timeout = timeout
        #: Whether the latest read did not return in time.
        self._is_late = False
        #: The timeout of reads of requests that PostgreSQL need not answer.
        self._patience = timeout
        self._why_unreadable = why_unreadable(backend)

    async def read_for_waiters(
        self, awaited: Sequence[str], watched: Sequence[str]
    ) -> dict[str, TaskRow]:
        """Return the rows of *awaited* tasks that have ended and of all *watched* tasks.

        While PostgreSQL is away, the backend alone says which tasks have ended.
        """
        all_ids = [*awaited, *watched]
        try:
            async with asyncio.timeout(self._patience):
                requests = await self._store.read_snapshots(all_ids)
            self._patience = self._timeout
        except (StoreUnavailable, TimeoutError):
            self._patience = self._timeout * SHORTER_WHEN_LATE
            requests = {}
        rows = await self._add_results(all_ids, requests, is_shared=True)
        always = set(watched)
        return {
            task_id: row
            for task_id, row in rows.items()
            if row.is_finished or task_id in always
        }

    async def read_snapshots(self, task_ids: Sequence[str]) -> dict[str, TaskRow]:
        """Return the rows of the tasks; an unknown task has no state and no request.

        Raises StoreUnavailable if the backend does not answer in time. While it does
        not, later calls wait less.
        """
        requests = await self._store.read_snapshots(task_ids)
        return await self._add_results(task_ids, requests, is_shared=False)

    def check_readable(self) -> None:
        """Raise ResultsElsewhere if the backend can never be read."""
        if self._why_unreadable is not None:
            raise ResultsElsewhere(self._why_unreadable)

    def decode(self, row: TaskRow) -> TaskSnapshot[Any]:
        """Return *row* as a snapshot; raises the error with which decoding has failed."""
        if not isinstance(row, DecodedRow):
            return from_meta(row, {"status": row.state or states.PENDING})
        if row.error is not None:
            # All waiters of the task raise this instance.
            raise row.error.with_traceback(None)
        return from_meta(row, row.meta)

    async def _read_for_all(self, task_ids: Sequence[str]) -> dict[str, Reading]:
        """Read for all who wait. The tasks that need more time are left out.

        There is no time limit: large results may take long, and nothing else waits for
        them.
        """
        return await self._reader.read(task_ids)

    async def _read_for_one(
        self, task_ids: Sequence[str], timeout: float
    ) -> dict[str, Reading]:
        """Read all *task_ids* for one caller."""
        return await self._reader.read(task_ids, timeout)

    async def _read_in_time(self, task_ids: Sequence[str]) -> dict[str, Reading]:
        timeout = self._timeout * (SHORTER_WHEN_LATE if self._is_late else 1)
        try:
            readings = await self._read_for_one(task_ids, timeout)
        except StoreUnavailable as error:
            self._is_late = isinstance(error.__cause__, TimeoutError)
            raise
        self._is_late = False
        return readings

    async def _add_results(
        self, task_ids: Sequence[str], requests: dict[str, TaskRow], *, is_shared: bool
    ) -> dict[str, TaskRow]:
        """Return the rows of the tasks, with the *requests* that were read before.

        Read requests first, results second: a worker records the outcome of a request
        after the result is stored, so a row with an outcome has its result as well.
        """
        if not task_ids:
            return {}
        if self._why_unreadable is not None:
            readings: dict[str, Reading] = {
                task_id: nothing_stored() for task_id in task_ids
            }
        elif is_shared:
            readings = await self._read_for_all(task_ids)
        else:
            readings = await self._read_in_time(task_ids)
        timezone: tzinfo = self._backend.app.timezone
        rows: dict[str, TaskRow] = {}
        for count, (task_id, reading) in enumerate(readings.items(), 1):
            rows[task_id] = _row(task_id, reading, requests.get(task_id), timezone)
            if not count % ROW_BATCH:
                await asyncio.sleep(0)
        return rows


def _row(
    task_id: str, reading: Reading, known: TaskRow | None, timezone: tzinfo
) -> DecodedRow:
    request = known.request if known is not None else None
    facts: dict[str, Any] = {
        "task_id": task_id,
        "request": request,
        "kill_in": known.kill_in if known is not None else None,
    }
    if not isinstance(reading, dict):
        # The task has ended, as it has a result; its real state cannot be read.
        error = reading if isinstance(reading, Exception) else None
        return DecodedRow(**facts, state=states.FAILURE, meta={}, error=error)
    meta: Meta = reading | {"date_done": _moment(reading.get("date_done"), timezone)}
    if (
        request is not None
        and request.is_pending
        and meta["status"] not in states.READY_STATES
    ):
        # Celery's table in PostgreSQL says so, too, between the abort and the end.
        meta["status"] = ABORTED
    return DecodedRow(**facts, state=meta["status"], meta=meta)


def _moment(stored: object, timezone: tzinfo) -> datetime | None:
    """Return a datetime with a time zone of what a backend stored as ``date_done``.

    Key-value stores keep it as text. Databases other than PostgreSQL drop the time zone,
    which was *timezone*, the app's.
    """
    moment = stored
    if isinstance(stored, str):
        try:
            moment = datetime.fromisoformat(stored)
        except ValueError:
            return None
    if not isinstance(moment, datetime):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone)


def _text_of(row: DecodedRow) -> str:
    try:
        result = repr(row.meta.get("result"))
    except Exception as error:  # noqa: BLE001 - a result may be of any class
        result = repr(error)
    traceback, date_done = row.meta.get("traceback"), row.meta.get("date_done")
    return f"{result} {traceback} {date_done} {row.error!r}"
