"""The client: sends tasks, asks them to stop and awaits them."""

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, overload

from celery import Celery, Task
from celery.canvas import Signature, group
from celery.result import AsyncResult, GroupResult, ResultSet

from aioabort.generics import GenericTask, P, R
from aioabort.postgres.pool import AnyPool
from aioabort.producer.aborting import Aborting, Demand
from aioabort.producer.awaiting import Awaiting
from aioabort.producer.cancelling import REASON, aborting_on_cancel
from aioabort.producer.connections import Connections
from aioabort.producer.publishing import publish
from aioabort.producer.receipts import Following
from aioabort.producer.result import AbortableAsyncResult
from aioabort.producer.selection import criteria_of, unfinished
from aioabort.producer.targets import each_of, id_of, parts_of_all, shaped, tasks_of
from aioabort.records import (
    AbortReceipt,
    AbortRequest,
    ClientHealth,
    TaskSnapshot,
)
from aioabort.settings import read_settings

#: Expired rows a statement, so that none runs for long.
CLEANUP_BATCH = 1_000


class AbortClient:
    """Sends tasks, asks them to stop and awaits them, from one event loop.

    Use it as ``async with AbortClient(app) as client``, or call ``open()`` and
    ``aclose()`` yourself. It may be opened in one asyncio task and closed in another.
    Its statements run on *pool*, an asyncpg pool of yours that stays open, or else on
    one of its own; it listens on a connection of its own in any case.
    Raises ImproperlyConfigured if the app's configuration names no PostgreSQL.

    Its methods raise ClientClosed unless it is open, StoreUnavailable while PostgreSQL
    is away (but to wait goes on), and StoreError if it refuses.
    """

    def __init__(self, app: Celery, *, pool: "AnyPool | None" = None) -> None:
        self.app = app
        self._connections = Connections(app, read_settings(app), pool)
        self._awaiting = Awaiting(self._connections)
        following = Following(self._connections, self._awaiting)
        self._aborting = Aborting(self._connections, following)

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
        *before*: they first ran before that moment. Celery does not store when, so it
        is concluded from a task that began later and had ended by then: without one, a
        task is not found by its age.

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

    async def is_aborted(self, target: "str | AsyncResult[Any]") -> bool:
        """Whether the task is being aborted, or has ended by it."""
        return (await self._awaiting.row(id_of(target))).is_aborted

    @overload
    async def snapshot(self, target: str) -> TaskSnapshot[Any]: ...
    @overload
    async def snapshot(self, target: "AsyncResult[R]") -> TaskSnapshot[R]: ...
    async def snapshot(self, target: Any) -> TaskSnapshot[Any]:
        """Return what is known of the task now: its state, result and request."""
        row = await self._awaiting.row(id_of(target))
        return self._connections.results.decode(row)

    async def watch(
        self, target: "str | AsyncResult[Any]"
    ) -> AsyncGenerator[TaskSnapshot[Any]]:
        """Yield what is known of the task now, and again after each change until it ends.

        States that follow each other closely may be passed over: the latest is what
        counts. The states before the end are as old as the poll interval at most.
        While PostgreSQL is away, it goes on waiting.
        """
        task_id = id_of(target)
        results = self._connections.results
        results.check_readable()
        with self._connections.hub.watching(task_id) as view:
            while True:
                row = await view.next()
                yield results.decode(row)
                if row.is_finished:
                    return

    @overload
    async def wait(
        self,
        target: str,
        timeout: float | None = None,
        *,
        abort_on_cancel: bool = False,
        reason: str | None = None,
    ) -> Any: ...
    @overload
    async def wait(
        self,
        target: "AsyncResult[R]",
        timeout: float | None = None,
        *,
        abort_on_cancel: bool = False,
        reason: str | None = None,
    ) -> R: ...
    async def wait(
        self,
        target: Any,
        timeout: float | None = None,
        *,
        abort_on_cancel: bool = False,
        reason: str | None = None,
    ) -> Any:
        """Return the task's value when it has ended, or raise the error that ended it.

        Raises TaskAborted if it was aborted, and WaitTimeout after *timeout* seconds;
        the task goes on then. While PostgreSQL is away, it goes on waiting.

        With *abort_on_cancel*, a wait that is cancelled has the task asked to stop, for
        *reason*, and is held up by that for 5 seconds at most.
        """
        task_id = id_of(target)
        if isinstance(target, AbortableAsyncResult) and target.end is not None:
            return self._awaiting.value_of(target.end)
        if not abort_on_cancel:
            return await self._awaiting.value(task_id, timeout)
        Demand(reason)
        abort = partial(self.abort, target, reason=reason or REASON)
        async with aborting_on_cancel(abort):
            return await self._awaiting.value(task_id, timeout)

    @overload
    async def gather(
        self,
        results: "Iterable[AsyncResult[R]]",
        *,
        return_exceptions: Literal[False] = False,
        timeout: float | None = None,
    ) -> list[R]: ...
    @overload
    async def gather(
        self,
        results: "ResultSet | Iterable[str | AsyncResult[Any] | ResultSet]",
        *,
        return_exceptions: bool = False,
        timeout: float | None = None,
    ) -> list[Any]: ...
    async def gather(
        self,
        results: Any,
        *,
        return_exceptions: bool = False,
        timeout: float | None = None,
    ) -> list[Any]:
        """Return the values of many tasks, in order, when all have ended.

        The value of a group in *results* is the list of its members' values. The first
        error is raised at once, as by ``asyncio.gather()``, and the other tasks go on;
        with *return_exceptions* errors take the place of values. Raises WaitTimeout
        after *timeout* seconds.
        """
        items = list(results if isinstance(results, ResultSet) else each_of(results))
        task_ids = [id_of(task) for item in items for task in tasks_of(item)]
        values = await self._awaiting.values(
            task_ids, timeout, return_exceptions=return_exceptions
        )
        return shaped(items, iter(values))

    @overload
    def as_completed(
        self, results: "Iterable[AsyncResult[R]]", *, timeout: float | None = None
    ) -> AsyncGenerator[AbortableAsyncResult[R]]: ...
    @overload
    def as_completed(
        self,
        results: "ResultSet | Iterable[str | AsyncResult[Any] | ResultSet]",
        *,
        timeout: float | None = None,
    ) -> AsyncGenerator[AbortableAsyncResult[Any]]: ...
    async def as_completed(
        self, results: Any, *, timeout: float | None = None
    ) -> AsyncGenerator[AbortableAsyncResult[Any]]:
        """Yield the results of many tasks as these end; to await them takes no time.

        Groups count as their members. Results that can be aborted are those that were
        passed, others are made of ids and of Celery's. Raises WaitTimeout *timeout*
        seconds after it began.
        """
        tasks = [task for item in each_of(results) for task in tasks_of(item)]
        task_ids = [id_of(task) for task in tasks]
        async with aclosing(self._awaiting.ends(task_ids, timeout)) as ends:
            async for number, end in ends:
                result = tasks[number]
                if not isinstance(result, AbortableAsyncResult):
                    result = self.result(task_ids[number])
                result.end = end
                yield result

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
