"""The client: sends tasks, asks them to stop and awaits them."""

import logging
from collections.abc import AsyncGenerator
from functools import partial
from types import TracebackType
from typing import Any, Self

from anyio import to_thread
from celery import Celery, states
from celery.result import EagerResult

from aioabort.exceptions import AioabortError, StoreError, WaitTimeout
from aioabort.generics import GenericTask, P, R
from aioabort.postgres.pool import AnyPool
from aioabort.postgres.store import Store
from aioabort.producer.codec import value_of
from aioabort.producer.connections import Connections
from aioabort.producer.limits import check_grace, check_task_id, check_text
from aioabort.producer.result import AbortableAsyncResult
from aioabort.records import AbortReceipt, ClientHealth, TaskRow, TaskSnapshot
from aioabort.settings import read_settings

logger: logging.Logger = logging.getLogger(__name__)


class AbortClient:
    """Sends tasks, asks them to stop and awaits them, from one event loop.

    Use it as ``async with AbortClient(app) as client``, or call ``open()`` and
    ``aclose()`` yourself. It may be opened in one asyncio task and closed in another.
    Its statements run on *pool*, an asyncpg pool of yours that stays open, or else on
    one of its own; it listens on a connection of its own in any case.
    Raises ImproperlyConfigured if the app's configuration names no PostgreSQL.
    """

    def __init__(self, app: Celery, *, pool: "AnyPool | None" = None) -> None:
        self.app = app
        self._connections = Connections(app, read_settings(app), pool)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def open(self) -> None:
        """Connect; return when that is done, and at once if it was done before.

        Raises StoreUnavailable or StoreError if PostgreSQL cannot be used, ClientClosed
        if it was closed before, and WrongLoop if it was opened on another event loop.
        """
        await self._connections.open()

    async def aclose(self) -> None:
        """Close all connections; whoever still awaits a task gets ClientClosed."""
        await self._connections.aclose()

    @property
    def is_closed(self) -> bool:
        """Whether it was opened once, and is of no use any more."""
        return self._connections.are_closed

    def health(self) -> ClientHealth:
        """Return how this hears of what happens, by which way and how late."""
        return self._connections.health()

    def result(self, task_id: str) -> AbortableAsyncResult[Any]:
        """Return the result of *task_id*, which may come from anywhere, bound to this."""
        return AbortableAsyncResult(task_id, app=self.app, client=self)

    async def send(
        self, task: GenericTask[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> AbortableAsyncResult[R]:
        """Publish *task* as ``task.delay()`` does, in a thread: the loop goes on."""
        publish = partial(task.apply_async, args, kwargs)
        result = await to_thread.run_sync(publish)
        if isinstance(result, EagerResult):
            raise AioabortError(
                f"{task.name} has run already: with task_always_eager there is "
                "nothing to abort or await"
            )
        return AbortableAsyncResult(
            result.id, app=self.app, parent=result.parent, client=self
        )

    async def abort(
        self,
        task_id: str,
        *,
        reason: str | None = None,
        requested_by: str | None = None,
        grace: float | None = None,
    ) -> AbortReceipt:
        """Ask the task to stop; the receipt says whether it can still be asked.

        If it still runs after *grace* seconds, it is killed by Celery's own
        ``revoke(terminate=True)``, in pools that can do that; a later call may shorten
        the grace, also of somebody else's request. Committed when this returns. Raises InvalidRequest for what cannot be stored,
        and StoreUnavailable or StoreError if PostgreSQL did not take it.
        """
        check_task_id(task_id)
        check_text("reason", reason)
        check_text("requested_by", requested_by)
        check_grace(grace)
        store = self._connections.store
        if not store.has_results:
            row = await self._row(task_id)
            if row.state in states.READY_STATES:
                return AbortReceipt(task_id=task_id, answer="finished", state=row.state)
        requests = await store.request([task_id], reason, requested_by, grace)
        if task_id not in requests:
            if grace is not None:
                await store.hasten([task_id], grace)
                await self._hint(store, task_id)
            return _receipt((await store.snapshots([task_id])).get(task_id), task_id)
        await self._hint(store, task_id)
        return AbortReceipt(
            task_id=task_id, answer="requested", request=requests[task_id]
        )

    async def is_aborted(self, task_id: str) -> bool:
        """Whether the task is being aborted, or has ended by it."""
        return (await self._row(task_id)).is_aborted

    async def snapshot(self, task_id: str) -> TaskSnapshot[Any]:
        """Return what is known of the task now: its state, result and request."""
        row = await self._row(task_id)
        return self._connections.results.decode(row)

    async def watch(self, task_id: str) -> AsyncGenerator[TaskSnapshot[Any]]:
        """Yield what is known of the task now, and again after each change until it ends.

        States that follow each other closely may be passed over: the latest is what
        counts. The states before the end are as old as the poll interval at most.
        While PostgreSQL is away, it goes on waiting.
        """
        check_task_id(task_id)
        results = self._connections.results
        results.check_readable()
        with self._connections.hub.watching(task_id) as view:
            while True:
                row = await view.next()
                yield results.decode(row)
                if row.is_finished:
                    return

    async def wait(self, task_id: str, timeout: float | None = None) -> Any:
        """Return the task's value when it has ended, or raise the error that ended it.

        Raises TaskAborted if it was aborted, and WaitTimeout after *timeout* seconds;
        the task goes on then. While PostgreSQL is away, it goes on waiting.
        """
        check_task_id(task_id)
        results = self._connections.results
        results.check_readable()
        if timeout is not None and timeout <= 0:
            now = await self._row(task_id)
            row = now if now.is_finished else None
        else:
            row = await self._connections.hub.finished(task_id, timeout)
        if row is None:
            trouble = self._connections.hub.health.trouble
            raise WaitTimeout(task_id, timeout or 0, str(trouble or "")) from trouble
        return value_of(results.decode(row))

    async def _row(self, task_id: str) -> TaskRow:
        check_task_id(task_id)
        rows = await self._connections.results.snapshots([task_id])
        return rows.get(task_id) or TaskRow(task_id=task_id)

    async def _hint(self, store: Store, task_id: str) -> None:
        try:
            await store.hint_workers([task_id])
        except StoreError as error:
            # The request is committed; the worker's poll will find it.
            logger.debug("aioabort client: no notification was sent: %s", error)


def _receipt(row: TaskRow | None, task_id: str) -> AbortReceipt:
    """Return the receipt of a request that was refused, from the row that refused it."""
    if row is not None and row.state in states.READY_STATES:
        return AbortReceipt(
            task_id=task_id, answer="finished", state=row.state, request=row.request
        )
    request = row.request if row is not None else None
    return AbortReceipt(task_id=task_id, answer="requested_before", request=request)
