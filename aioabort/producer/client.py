"""The client: sends tasks, asks them to stop and awaits them."""

import logging
from functools import partial
from types import TracebackType
from typing import Any, Self

from anyio import move_on_after, to_thread
from celery import Celery, states
from celery.result import EagerResult

from aioabort.exceptions import (
    AioabortError,
    ResultsElsewhere,
    StoreError,
    WaitTimeout,
)
from aioabort.generics import GenericTask, P, R
from aioabort.postgres.store import Store
from aioabort.producer.codec import decode, from_meta, value_of
from aioabort.producer.connections import Connections
from aioabort.producer.limits import check_grace, check_task_id, check_text
from aioabort.producer.result import AbortableAsyncResult
from aioabort.records import AbortReceipt, AbortRequest, TaskRow, TaskSnapshot
from aioabort.settings import read_settings

#: Expired rows a statement, so that none runs for long.
CLEANUP_BATCH = 1_000

logger: logging.Logger = logging.getLogger(__name__)


class AbortClient:
    """Sends tasks, asks them to stop and awaits them, from one event loop.

    Use it as ``async with AbortClient(app) as client``, or call ``open()`` and
    ``aclose()`` yourself. It may be opened in one asyncio task and closed in another.
    Raises ImproperlyConfigured if the app's configuration names no PostgreSQL.
    """

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._settings = read_settings(app)
        self._connections = Connections(app, self._settings)

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

        Raises StoreUnavailable or StoreError if PostgreSQL cannot be used.
        """
        await self._connections.open()

    async def aclose(self) -> None:
        """Close all connections; whoever still awaits a task gets ClientClosed."""
        await self._connections.aclose()

    @property
    def is_closed(self) -> bool:
        """Whether it was opened once, and is of no use any more."""
        return self._connections.are_closed

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
            state = (await self._read_elsewhere(task_id))["status"]
            if state in states.READY_STATES:
                return AbortReceipt(task_id=task_id, answer="finished", state=state)
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
        if self._connections.store.has_results:
            return decode(row, self._connections.backend)
        return from_meta(row, await self._read_elsewhere(task_id))

    async def wait(self, task_id: str, timeout: float | None = None) -> Any:
        """Return the task's value when it has ended, or raise the error that ended it.

        Raises TaskAborted if it was aborted, and WaitTimeout after *timeout* seconds;
        the task goes on then. While PostgreSQL is away, it goes on waiting.
        """
        check_task_id(task_id)
        if not self._connections.store.has_results:
            raise ResultsElsewhere(
                f"There is no table {self._settings.task_table!r} with results in "
                f"{self._settings.dsn}: aioabort cannot await them"
            )
        return value_of(
            decode(await self._finished(task_id, timeout), self._connections.backend)
        )

    async def requests(
        self, *, limit: int = 100, pending: bool = False
    ) -> list[AbortRequest]:
        """Return the latest requests, the newest first; *pending*: only unsettled ones."""
        return await self._connections.store.requests(limit, pending=pending)

    async def cleanup(self) -> int:
        """Delete the requests that have expired, in batches; return how many.

        Those are older than ``aioabort_request_expires``. Several at once are no harm.
        """
        deleted = 0
        while count := await self._connections.store.delete_expired(CLEANUP_BATCH):
            deleted += count
        return deleted

    async def _finished(self, task_id: str, timeout: float | None) -> TaskRow:
        if timeout is not None and timeout <= 0:
            if row := (await self._connections.store.finished([task_id])).get(task_id):
                return row
        else:
            with move_on_after(timeout):
                return await self._connections.hub.finished(task_id)
        trouble = self._connections.hub.health.trouble
        raise WaitTimeout(task_id, timeout or 0, str(trouble or "")) from trouble

    async def _row(self, task_id: str) -> TaskRow:
        check_task_id(task_id)
        rows = await self._connections.store.snapshots([task_id])
        return rows.get(task_id) or TaskRow(task_id=task_id)

    async def _read_elsewhere(self, task_id: str) -> dict[str, Any]:
        """Ask Celery's own backend, which blocks, in a thread."""
        return await to_thread.run_sync(
            self._connections.backend.get_task_meta, task_id
        )

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
