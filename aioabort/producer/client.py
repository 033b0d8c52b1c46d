"""The client: sends tasks, asks them to stop and awaits them."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self, overload

from anyio import move_on_after, to_thread
from celery import Celery, Task
from celery.canvas import Signature, group
from celery.result import AsyncResult, GroupResult, ResultSet

from aioabort.exceptions import ResultsElsewhere, WaitTimeout
from aioabort.generics import GenericTask, P, R
from aioabort.producer.aborting import Aborting, Demand, parts_of_all
from aioabort.producer.codec import decode, from_meta, value_of
from aioabort.producer.connections import Connections
from aioabort.producer.limits import check_task_id
from aioabort.producer.publishing import publish
from aioabort.producer.result import AbortableAsyncResult
from aioabort.producer.selection import criteria_of, unfinished
from aioabort.records import AbortReceipt, AbortRequest, TaskRow, TaskSnapshot
from aioabort.settings import read_settings

#: Expired rows a statement, so that none runs for long.
CLEANUP_BATCH = 1_000


class AbortClient:
    """Sends tasks, asks them to stop and awaits them, from one event loop.

    Use it as ``async with AbortClient(app) as client``, or call ``open()`` and
    ``aclose()`` yourself. It may be opened in one asyncio task and closed in another.
    Raises ImproperlyConfigured if the app's configuration names no PostgreSQL.

    Its methods raise ClientClosed unless it is open, StoreUnavailable while PostgreSQL
    is away (but to wait goes on), and StoreError if it refuses.
    """

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._settings = read_settings(app)
        self._connections = Connections(app, self._settings)
        self._aborting = Aborting(self._connections)

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

    @overload
    async def send(
        self, task: GenericTask[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> AbortableAsyncResult[R]: ...
    @overload
    async def send(self, task: group, *args: Any, **kwargs: Any) -> GroupResult: ...
    @overload
    async def send(
        self, task: Signature[R], *args: Any, **kwargs: Any
    ) -> AbortableAsyncResult[R]: ...
    async def send(self, task: Any, *args: Any, **kwargs: Any) -> Any:
        """Publish *task* as ``task.delay()`` does, in a thread: the loop goes on.

        A signature, group, chain or chord does as well. Raises AioabortError with
        ``task_always_eager``, and what Celery raises if the broker cannot be reached.
        """
        return await publish(self, task, args, kwargs, {})

    @overload
    async def apply_async(
        self,
        task: "Task[..., R]",
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AbortableAsyncResult[R]: ...
    @overload
    async def apply_async(
        self,
        task: group,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> GroupResult: ...
    @overload
    async def apply_async(
        self,
        task: Signature[R],
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AbortableAsyncResult[R]: ...
    async def apply_async(
        self, task: Any, args: Any = None, kwargs: Any = None, **options: Any
    ) -> Any:
        """Publish *task* with Celery's options, as its ``apply_async()`` does.

        Otherwise as ``send()``.
        """
        return await publish(self, task, args, kwargs, options)

    # A string is an iterable of strings, too, but the first signature comes first.
    @overload
    async def abort(  # type: ignore[overload-overlap]
        self,
        target: "str | AsyncResult[Any]",
        *,
        reason: str | None = None,
        requested_by: str | None = None,
        grace: float | None = None,
    ) -> AbortReceipt: ...
    @overload
    async def abort(
        self,
        target: "ResultSet | Iterable[str | AsyncResult[Any] | ResultSet]",
        *,
        reason: str | None = None,
        requested_by: str | None = None,
        grace: float | None = None,
    ) -> list[AbortReceipt]: ...
    async def abort(
        self,
        target: Any,
        *,
        reason: str | None = None,
        requested_by: str | None = None,
        grace: float | None = None,
    ) -> AbortReceipt | list[AbortReceipt]:
        """Ask a task to stop, or many; receipts say which of them can still be asked.

        For an id or a result there is one receipt. For a group, and for an iterable of
        ids, results and groups, there is a list in the same order, with one for each
        member of a group. With a result goes all that comes before it: the links of
        its chain, the header of its chord.

        If a task still runs after *grace* seconds, it is killed by Celery's own
        ``revoke(terminate=True)``, in pools that can do that; a later call may shorten
        the grace, also of somebody else's request. Committed when this returns.

        Raises InvalidRequest for what cannot be stored, before anything is; and
        StoreUnavailable or StoreError if PostgreSQL did not take it. Then some may have
        been asked if they are more than 1,000, and to ask them again does no harm.
        """
        demand = Demand(reason, requested_by, grace)
        receipts = await self._aborting.request(await parts_of_all(target), demand)
        return receipts[0] if isinstance(target, str | AsyncResult) else receipts

    async def abort_where(
        self,
        *,
        task: "str | Task[..., Any] | None" = None,
        worker: str | None = None,
        queue: str | None = None,
        before: datetime | None = None,
        reason: str | None = None,
        requested_by: str | None = None,
        grace: float | None = None,
    ) -> list[AbortReceipt]:
        """Ask all tasks to stop that meet every criterion given, and have not ended.

        Found are tasks of which Celery has stored a state: those that run, if
        ``task_track_started`` is set or they report progress, and those that wait for
        a retry; but none that is queued for the first time. *task*, *worker* (a node's
        name) and *queue* (a routing key) are stored with ``result_extended`` only.
        *before*: the state was stored before that moment, which is the start of a task
        that reports no progress.

        Raises InvalidRequest without any criterion, ImproperlyConfigured or StoreError
        if Celery does not store what is asked for, and otherwise what ``abort()`` does.
        """
        criteria = criteria_of(
            self.app, task=task, worker=worker, queue=queue, before=before
        )
        demand = Demand(reason, requested_by, grace)
        receipts: list[AbortReceipt] = []
        async for parts in unfinished(self._connections.store, criteria):
            receipts += await self._aborting.request(parts, demand)
        return receipts

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
