"""The client: sends and aborts tasks, and awaits their results."""

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from datetime import datetime
from functools import partial
from typing import Any, Literal, Self, overload

from celery import Celery, Task
from celery.canvas import Signature, group
from celery.result import AsyncResult, GroupResult, ResultSet

from aioabort.celery_compat import GenericTask, P, R
from aioabort.client.abort_requests import AbortOptions, AbortRequests
from aioabort.client.connections import Connections
from aioabort.client.criteria import check_criteria
from aioabort.client.publishing import publish
from aioabort.client.receipts import RequestFollower
from aioabort.client.result import AbortableAsyncResult
from aioabort.client.targets import each_of, id_of, regroup, tasks_of
from aioabort.client.validation import check_app, check_limit
from aioabort.client.waiting import ResultAwaiter, aborting_on_cancel
from aioabort.models import AbortReceipt, AbortRequest, ClientHealth, TaskSnapshot
from aioabort.poller import BATCH_SIZE
from aioabort.postgres.pool import AnyPool
from aioabort.settings import read_settings


class AbortClient:
    """Sends and aborts tasks and awaits their results, on one event loop.

    Use it as ``async with AbortClient(app) as client``, or call ``open()`` and
    ``aclose()`` yourself, in any asyncio tasks of the same loop. Statements run on
    *pool*, an asyncpg pool of yours that the client does not close; without it, the
    client opens a pool. In both cases one more connection listens for notifications.
    Raises TypeError if *app* is no Celery app, and ImproperlyConfigured if its
    configuration names no PostgreSQL server.

    The methods raise ClientClosed unless the client is open, StoreUnavailable while
    PostgreSQL is away (a wait goes on instead), and StoreError if it refuses a statement.
    """

    def __init__(self, app: Celery, *, pool: "AnyPool | None" = None) -> None:
        check_app(app)
        self.app = app
        self._connections = Connections(app, read_settings(app), pool)
        self._awaiter = ResultAwaiter(self._connections)
        follower = RequestFollower(self._connections, self._awaiter)
        self._abort_requests = AbortRequests(self._connections, follower)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def open(self) -> None:
        """Connect, unless the client is open already.

        Raises StoreUnavailable or StoreError if PostgreSQL cannot be used, ClientClosed
        if the client was closed, and WrongLoop if it was opened on another event loop.
        """
        await self._connections.open()

    async def aclose(self) -> None:
        """Close all connections; coroutines that still await a task get ClientClosed."""
        await self._connections.aclose()

    @property
    def is_closed(self) -> bool:
        """Whether the client was opened and then closed; it cannot be opened again."""
        return self._connections.are_closed

    def health(self) -> ClientHealth:
        """Return whether notifications arrive, and how old an answer may be."""
        return self._connections.health()

    def result(self, task_id: str) -> AbortableAsyncResult[Any]:
        """Return the result of any task, whose methods use this client."""
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
        """Publish a task as ``task.delay()`` does, in a thread; return its result.

        *task* may be a signature, group, chain or chord, too. Raises AioabortError with
        ``task_always_eager``, and Celery's error if the broker cannot be reached.
        """
        return await publish(
            task, args, kwargs, {}, app=self.app, make_result=self.result
        )

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
        task: "Task[..., R] | Signature[R]",
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AbortableAsyncResult[R]: ...
    async def apply_async(
        self, task: Any, args: Any = None, kwargs: Any = None, **options: Any
    ) -> Any:
        """Publish like ``send()``, with the *options* of Celery's ``apply_async()``."""
        return await publish(
            task, args, kwargs, options, app=self.app, make_result=self.result
        )

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
        """Ask one or many tasks to stop; return when the requests are committed.

        Returns a receipt for an id or a result. For a group, or an iterable of ids,
        results and groups, returns a list in the same order, with one receipt a member.
        The tasks before a result in its chain or chord are asked to stop, too.

        After *grace* seconds Celery's ``revoke(terminate=True)`` kills a task, if it
        still runs and its pool can do that. A later call can shorten the grace of an
        earlier request.

        Raises InvalidRequest, and stores nothing, if an id, *reason*, *requested_by* or
        *grace* cannot be stored, or an id is that of a group saved in PostgreSQL. A transaction stores 1,000 requests: an error may leave
        the first thousands of more stored, and a second call does no harm.
        """
        options = AbortOptions(reason, requested_by, grace)
        receipts = await self._abort_requests.request(target, options)
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
        """Ask all unfinished tasks to stop that meet all given criteria.

        Finds tasks with a state in Celery's table: running ones (with
        ``task_track_started`` or states of their own) and ones that wait for a retry,
        but none that is queued for the first time. Celery stores *task*, *worker* (a
        node name) and *queue* (a routing key) only with ``result_extended``.
        *before*, with a time zone, finds tasks that first ran before that moment.
        Celery does not store it: it is derived from another task that began later and
        had ended by then.

        Raises InvalidRequest without a criterion, ImproperlyConfigured or StoreError
        if Celery does not store it, ResultsElsewhere if the results are not in
        PostgreSQL, and the errors of ``abort()``.
        """
        criteria = check_criteria(task=task, worker=worker, queue=queue, before=before)
        options = AbortOptions(reason, requested_by, grace)
        return await self._abort_requests.request_where(self.app, criteria, options)

    async def is_aborted(self, target: "str | AsyncResult[Any]") -> bool:
        """Whether the task is being aborted, or has ended by an abort."""
        return (await self._awaiter.read_row(id_of(target))).is_aborted

    @overload
    async def snapshot(self, target: str) -> TaskSnapshot[Any]: ...
    @overload
    async def snapshot(self, target: "AsyncResult[R]") -> TaskSnapshot[R]: ...
    async def snapshot(self, target: Any) -> TaskSnapshot[Any]:
        """Return the task's state, result and abort request of this moment."""
        row = await self._awaiter.read_row(id_of(target))
        return self._connections.results.decode(row)

    async def watch(
        self, target: "str | AsyncResult[Any]"
    ) -> AsyncGenerator[TaskSnapshot[Any]]:
        """Yield snapshots of the task, as ``AbortableAsyncResult.watch()`` does."""
        task_id = id_of(target)
        results = self._connections.results
        results.check_readable()
        with self._connections.waiters.watching(task_id) as changes:
            while True:
                row = await changes.next_row()
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
        """Do what ``AbortableAsyncResult.wait()`` does."""
        if abort_on_cancel:
            abort = partial(self.abort, target)
            async with aborting_on_cancel(abort, reason, self.app):
                return await self.wait(target, timeout)
        task_id = id_of(target)
        if isinstance(target, AbortableAsyncResult) and target.known_ending is not None:
            return self._awaiter.value_of(target.known_ending)
        return await self._awaiter.wait(task_id, timeout)

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
        """Return a list of the tasks' values, in order, when all tasks have ended.

        The value of a group is the list of its members' values. Raises the first error
        at once, as ``asyncio.gather()`` does, and the other tasks run on; with
        *return_exceptions*, an error takes the place of its value. Raises WaitTimeout
        after *timeout* seconds.
        """
        items = list(results if isinstance(results, ResultSet) else each_of(results))
        task_ids = [id_of(task) for item in items for task in tasks_of(item)]
        values = await self._awaiter.gather(
            task_ids, timeout, return_exceptions=return_exceptions
        )
        return regroup(items, iter(values))

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
        """Yield the results of tasks in the order they end; awaiting one takes no time.

        Yields the members of a group. Yields an AbortableAsyncResult itself, and a new
        one for an id. Raises WaitTimeout *timeout* seconds after the iteration began.
        """
        tasks = [task for item in each_of(results) for task in tasks_of(item)]
        task_ids = [id_of(task) for task in tasks]
        async with aclosing(self._awaiter.as_completed(task_ids, timeout)) as endings:
            async for index, ending in endings:
                result = tasks[index]
                if not isinstance(result, AbortableAsyncResult):
                    result = self.result(task_ids[index])
                # An error is not kept: awaiting the result asks PostgreSQL again.
                result.known_ending = None if isinstance(ending, Exception) else ending
                yield result

    async def requests(
        self, *, limit: int = 100, pending: bool = False
    ) -> list[AbortRequest]:
        """Return the latest *limit* abort requests, the newest first.

        With *pending*, only requests without an outcome.
        """
        check_limit(limit)
        return await self._connections.store.list_requests(limit, pending=pending)

    async def cleanup(self) -> int:
        """Delete abort requests older than ``aioabort_request_expires``; return how many.

        Deletes 1,000 at a time; concurrent calls do not disturb each other.
        """
        deleted = 0
        while count := await self._connections.store.delete_expired(BATCH_SIZE):
            deleted += count
        return deleted
