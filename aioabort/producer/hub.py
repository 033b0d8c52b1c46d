"""Everyone who awaits a task's end, served by one look for all of them."""

import asyncio

from aioabort.exceptions import StoreError, StoreUnavailable
from aioabort.postgres.store import Store
from aioabort.reconnect import Connectivity
from aioabort.records import TaskRow
from aioabort.watcher import Watcher

#: Seconds; completions that are told of within them share one statement.
COALESCE = 0.005


class Hub:
    """The awaited ids, and the futures of those who await them."""

    def __init__(self, poll_interval: float) -> None:
        self.watcher: Watcher = Watcher(poll_interval, COALESCE)
        self.health: Connectivity = Connectivity("aioabort client", poll_interval)
        self._waiters: dict[str, set[asyncio.Future[TaskRow]]] = {}

    async def finished(self, task_id: str) -> TaskRow:
        """Return the row of *task_id* when it has ended, however long that takes.

        Raises StoreError when PostgreSQL refuses to tell; while it is away, goes on
        waiting.
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[TaskRow] = loop.create_future()
        self._waiters.setdefault(task_id, set()).add(waiter)
        # Watched before it is looked at for the first time: an end between the two
        # is seen by one of them.
        self.watcher.watch(task_id)
        try:
            return await waiter
        finally:
            self._leave(task_id, waiter)

    async def look_for_ends(self, store: Store, task_ids: list[str]) -> None:
        """Wake up those who await the tasks that have ended."""
        try:
            rows = await store.finished(task_ids)
        except StoreUnavailable:
            raise
        except StoreError as error:
            for task_id in task_ids:
                self._fail(task_id, error)
            return
        self.health.recovered()
        for task_id, row in rows.items():
            for waiter in self._waiting_for(task_id):
                waiter.set_result(row)

    def fail_all(self, error: Exception) -> None:
        """Wake up everybody with *error*."""
        for task_id in self._waiters:
            self._fail(task_id, error)

    def _fail(self, task_id: str, error: Exception) -> None:
        for waiter in self._waiting_for(task_id):
            waiter.set_exception(error)

    def _waiting_for(self, task_id: str) -> list[asyncio.Future[TaskRow]]:
        waiters = self._waiters.get(task_id, ())
        return [waiter for waiter in waiters if not waiter.done()]

    def _leave(self, task_id: str, waiter: asyncio.Future[TaskRow]) -> None:
        waiters = self._waiters[task_id]
        waiters.discard(waiter)
        if not waiters:
            del self._waiters[task_id]
            self.watcher.unwatch(task_id)
