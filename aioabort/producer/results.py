"""Where Celery keeps the results, and how they are read."""

from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Protocol

from celery import Celery

from aioabort.postgres.connection import Executor
from aioabort.postgres.store import Store, open_store
from aioabort.producer.codec import decode
from aioabort.producer.elsewhere import Elsewhere, run_in
from aioabort.records import TaskRow, TaskSnapshot
from aioabort.settings import Settings


class Results(Protocol):
    """The results of tasks, and the requests to abort them."""

    async def look(
        self, task_ids: Sequence[str], closely: Sequence[str]
    ) -> dict[str, TaskRow]:
        """Return the rows of *task_ids* that have ended, and *closely*'s.

        The two have no id in common.
        """
        ...

    async def snapshots(self, task_ids: Sequence[str]) -> dict[str, TaskRow]:
        """Return the rows of the tasks; one never heard of has neither state nor request."""
        ...

    def check_readable(self) -> None:
        """Raise ResultsElsewhere if no result can be read, now or ever."""
        ...

    def decode(self, row: TaskRow) -> TaskSnapshot[Any]:
        """Return *row* with its result decoded, by Celery's own rules.

        Raises what Celery raises for a payload that it does not accept or understand.
        """
        ...


class Stored:
    """Results beside the requests, in PostgreSQL."""

    def __init__(self, store: Store, backend: Any) -> None:
        self._store = store
        self._backend = backend

    async def look(
        self, task_ids: Sequence[str], closely: Sequence[str]
    ) -> dict[str, TaskRow]:
        """Return the rows of *task_ids* that have ended, and *closely*'s."""
        return await self._store.look(task_ids, closely)

    async def snapshots(self, task_ids: Sequence[str]) -> dict[str, TaskRow]:
        """Return the rows of the tasks."""
        return await self._store.snapshots(task_ids)

    def check_readable(self) -> None:
        """Raise nothing."""

    def decode(self, row: TaskRow) -> TaskSnapshot[Any]:
        """Return *row* with its result decoded, by Celery's own rules."""
        return decode(row, self._backend)


@asynccontextmanager
async def open_results(
    app: Celery, executor: Executor, settings: Settings
) -> AsyncGenerator[tuple[Store, Results]]:
    """Open the store behind *executor*, and the results of *app*, which may be in it."""
    # One thread for all that Celery's backend does: some are bound to theirs, and
    # each thread would get a backend, and a connection, of its own.
    thread = ThreadPoolExecutor(1, thread_name_prefix="aioabort-results")
    try:
        # Creates Celery's table, if that is its way, before we look for it.
        backend: Any = await run_in(thread, lambda: app.backend)
        store = await open_store(executor, settings)
        if store.has_results:
            thread.shutdown(wait=False)
            yield store, Stored(store, backend)
        else:
            yield store, Elsewhere(store, backend, thread)
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
