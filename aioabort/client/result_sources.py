"""Where a client reads results: Celery's table in PostgreSQL, or Celery's own backend."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from celery import Celery

from aioabort.client.decoding import decode
from aioabort.client.external_results import ExternalResults
from aioabort.client.large_results import LargeResult
from aioabort.client.redis_results import RedisResults
from aioabort.external.blocking_reader import BlockingReader
from aioabort.external.opening import open_reader
from aioabort.external.readings import ResultReader
from aioabort.external.redis_reader import RedisReader
from aioabort.models import TaskRow, TaskSnapshot
from aioabort.postgres.request_store import RequestStore
from aioabort.timing import Timing


class ResultSource(Protocol):
    """The results of tasks, and the requests to abort them."""

    async def read_for_waiters(
        self, awaited: Sequence[str], watched: Sequence[str]
    ) -> dict[str, TaskRow]:
        """Return the rows of *awaited* tasks that have ended and of all *watched* tasks.

        No id may be in both.
        """
        ...

    async def read_snapshots(self, task_ids: Sequence[str]) -> dict[str, TaskRow]:
        """Return the rows of the tasks; an unknown task has no state and no request."""
        ...

    def check_readable(self) -> None:
        """Raise ResultsElsewhere if this source can never read a result."""
        ...

    def decode(self, row: TaskRow) -> TaskSnapshot[Any]:
        """Return *row* with its result decoded, by Celery's own rules.

        Raises what Celery raises for a payload that it does not accept or understand.
        """
        ...


class PostgresResults:
    """Reads results from Celery's table, in the same query as the abort requests."""

    def __init__(self, store: RequestStore, backend: Any) -> None:
        self._store = store
        self._backend = backend

    async def read_for_waiters(
        self, awaited: Sequence[str], watched: Sequence[str]
    ) -> dict[str, TaskRow]:
        """Return the rows of *awaited* tasks that have ended and of all *watched* tasks."""
        return await self._store.read_for_waiters(awaited, watched)

    async def read_snapshots(self, task_ids: Sequence[str]) -> dict[str, TaskRow]:
        """Return the rows of the tasks, with large results, however long that takes."""
        rows = await self._store.read_snapshots(task_ids)
        for task_id in rows:
            while rows[task_id].unread_size is not None:
                row = await LargeResult(rows[task_id]).fetch(self._store.read_part)
                # None: the row has changed while its result was fetched.
                rows |= (
                    await self._store.read_snapshots([task_id])
                    if row is None
                    else {task_id: row}
                )
        return rows

    def check_readable(self) -> None:
        """Raise nothing."""

    def decode(self, row: TaskRow) -> TaskSnapshot[Any]:
        """Return *row* with its result decoded, by Celery's own rules."""
        return decode(row, self._backend)


@asynccontextmanager
async def open_result_source(
    app: Celery, open_store: Callable[[], Awaitable[RequestStore]], timing: Timing
) -> AsyncGenerator[tuple[RequestStore, ResultSource]]:
    """Open the store of abort requests, and the result source of *app*."""
    blocking = BlockingReader(app, "aioabort-results")
    try:
        # First: some backends create Celery's table, which the store reads.
        backend = await blocking.open_backend()
        store = await open_store()
        if store.has_results:
            blocking.stop()
            yield store, PostgresResults(store, backend)
            return
        async with open_reader(backend, blocking, timing) as reader:
            yield store, _external_results(store, backend, reader, timing)
    finally:
        blocking.stop()


def _external_results(
    store: RequestStore, backend: Any, reader: ResultReader, timing: Timing
) -> ExternalResults:
    if isinstance(reader, RedisReader):
        return RedisResults(store, backend, reader, timing)
    return ExternalResults(store, backend, reader, timing.statement_timeout)
