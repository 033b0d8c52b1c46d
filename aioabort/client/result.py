"""Results of tasks that can be aborted and awaited."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from celery import Celery, states
from celery.result import ResultBase

from aioabort.celery_compat import GenericAsyncResult, GenericEagerResult, R_co
from aioabort.client.waiting import aborting_on_cancel
from aioabort.exceptions import StoreUnavailable, TaskAborted, WaitTimeout
from aioabort.models import AbortReceipt, TaskRow, TaskSnapshot
from aioabort.reconnect import Connectivity
from aioabort.settings import read_settings
from aioabort.timing import check_timeout

if TYPE_CHECKING:
    from aioabort.client.client import AbortClient

#: Stands for the app's backend until the ``backend`` property is first read.
_LATER: Final[Any] = object()

#: The clients that results share, by event loop and app. A client keeps its loop alive,
#: so it is removed when it is closed.
_clients: Final["dict[tuple[asyncio.AbstractEventLoop, Celery], AbortClient]"] = {}


class AbortableAsyncResult(GenericAsyncResult[R_co]):
    """A task's result: ``await result`` returns its value or raises its error.

    Has all methods of Celery's ``AsyncResult``, ``get()`` included, but ``wait()`` is a
    coroutine here. Without a *client*, the coroutines use one that is opened for the
    running event loop at first use and closed with the loop.

    The coroutines raise StoreUnavailable while PostgreSQL is away, and StoreError if it
    refuses a statement. But ``wait()`` keeps waiting while PostgreSQL is away, and so does
    ``watch()`` once the client is open.
    """

    # Set by AbortClient.as_completed(), so that awaiting the result needs no query.
    known_ending: TaskRow | None = None
    _backend: Any

    def __init__(
        self,
        id: str,  # noqa: A002 - the name is Celery's
        backend: Any = None,
        task_name: str | None = None,
        app: Celery | None = None,
        parent: ResultBase | None = None,
        *,
        client: "AbortClient | None" = None,
    ) -> None:
        super().__init__(id, backend or _LATER, task_name, app, parent)
        self._client = client

    @property
    def backend(self) -> Any:
        """Celery's result backend; made when first read, as that may connect."""
        if self._backend is _LATER:
            self._backend = self.app.backend
        return self._backend

    @backend.setter
    def backend(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, backend: Any
    ) -> None:
        self._backend = backend

    def __del__(self) -> None:
        if self._backend is not _LATER:
            super().__del__()

    def __await__(self) -> Generator[Any, None, R_co]:
        return self.wait().__await__()

    async def wait(  # type: ignore[override]
        self,
        timeout: float | None = None,
        *,
        abort_on_cancel: bool = False,
        reason: str | None = None,
    ) -> R_co:
        """Return the task's value when it has ended, or raise the error that ended it.

        Raises TaskAborted if the task was aborted, and WaitTimeout (a TimeoutError)
        after *timeout* seconds; the task runs on. Keeps waiting while PostgreSQL is
        away.

        With *abort_on_cancel*, cancelling the wait aborts the task, with *reason* in
        the abort request. This delays the cancellation for 5 seconds at most.
        """
        if abort_on_cancel:
            async with aborting_on_cancel(self.abort, reason, self.app):
                return await self.wait(timeout)
        timeout = check_timeout(timeout)
        is_one_query = timeout is not None and timeout <= 0
        if self._client is None and not is_one_query and not _has_client(self.app):
            return await self._open_client_and_wait(timeout)
        client = await self._open_client()
        value: R_co = await client.wait(self, timeout)
        return value

    async def abort(
        self,
        *,
        reason: str | None = None,
        requested_by: str | None = None,
        grace: float | None = None,
    ) -> AbortReceipt:
        """Ask the task to stop, and all tasks before it in its chain or chord.

        Returns a receipt once the request is committed; it says whether the task had
        ended already. After *grace* seconds Celery's ``revoke(terminate=True)`` kills
        the task, if it still runs and its pool can do that. Raises InvalidRequest if
        PostgreSQL cannot store *reason*, *requested_by* or *grace*.
        """
        client = await self._open_client()
        return await client.abort(
            self, reason=reason, requested_by=requested_by, grace=grace
        )

    async def is_aborted(self) -> bool:
        """Whether the task is being aborted, or has ended by an abort."""
        client = await self._open_client()
        return await client.is_aborted(self.id)

    async def snapshot(self) -> TaskSnapshot[R_co]:
        """Return the task's state, result and abort request of this moment."""
        client = await self._open_client()
        return await client.snapshot(self.id)

    async def watch(self) -> AsyncGenerator[TaskSnapshot[R_co]]:
        """Yield a snapshot of the task now, and one after each change until its end.

        Of several changes within a poll interval, only the latest may be yielded; each
        is noticed within one poll interval. Keeps waiting while PostgreSQL is away.
        """
        client = await self._open_client()
        async with aclosing(client.watch(self.id)) as snapshots:
            async for snapshot in snapshots:
                yield snapshot

    async def _open_client_and_wait(self, timeout: float | None) -> R_co:
        """Open the client as soon as PostgreSQL answers, and wait with it."""
        interval = read_settings(self.app).poll_interval
        connectivity = Connectivity("aioabort client", interval)
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                while True:
                    try:
                        client = await self._open_client()
                        break
                    except StoreUnavailable as error:
                        connectivity.lost(error)
                    await asyncio.sleep(connectivity.next_delay())
                connectivity.recovered()
                value: R_co = await client.wait(self)
                return value
        except TimeoutError:
            if not limit.expired():
                raise  # It is the error of the task.
            trouble = connectivity.trouble
            raise WaitTimeout(self.id, timeout or 0.0, str(trouble or "")) from trouble

    async def _open_client(self) -> "AbortClient":
        return self._client or await client_of_running_loop(self.app)


class AbortableEagerResult(  # pyright: ignore[reportIncompatibleMethodOverride]
    GenericEagerResult[R_co], AbortableAsyncResult[R_co]
):
    """The result of a task that ran eagerly: it has ended and needs no client."""

    _backend: Any = None

    async def wait(  # type: ignore[override]
        self, timeout: float | None = None, **_: object
    ) -> R_co:
        """Return the task's value, or raise the error that ended it."""
        del timeout
        value: R_co = self.get(disable_sync_subtasks=False)
        return value

    async def abort(self, **_: object) -> AbortReceipt:
        """Return a receipt that says that the task has ended."""
        return AbortReceipt(task_id=self.id, answer="finished", state=self.state)

    async def is_aborted(self) -> bool:
        """Whether the task has ended by an abort."""
        state = str(self.state)
        return state == states.REVOKED and isinstance(self.result, TaskAborted)

    async def snapshot(self) -> TaskSnapshot[R_co]:
        """Return how the task ended."""
        return TaskSnapshot(
            task_id=self.id,
            state=self.state,
            result=self.result,
            traceback=self.traceback and str(self.traceback),
            is_finished=True,
            is_aborted=await self.is_aborted(),
        )

    async def watch(self) -> AsyncGenerator[TaskSnapshot[R_co]]:
        """Yield how the task ended."""
        yield await self.snapshot()


async def client_of_running_loop(app: Celery) -> "AbortClient":
    """Return the client of *app* for the running loop, opened at first use.

    ``asyncio.run()`` closes the client at the end of the loop, by cancelling the
    asyncio task that holds its connections. Raises what ``AbortClient.open()`` raises;
    the next call tries again.
    """
    # Clients make results: an import at the top would be circular.
    from aioabort.client.client import AbortClient  # noqa: PLC0415

    key = asyncio.get_running_loop(), app
    client = _clients.get(key)
    if client is None or client.is_closed:
        client = _clients[key] = AbortClient(app)
        cast("Any", client)._connections.on_closed = partial(
            _remove_client, key, client
        )
    await client.open()
    return client


def _has_client(app: Celery) -> bool:
    """Whether the running loop has an open client of *app*."""
    client: Any = _clients.get((asyncio.get_running_loop(), app))
    return client is not None and client._connections.is_open


def _remove_client(key: Any, client: "AbortClient") -> None:
    if _clients.get(key) is client:
        del _clients[key]


def install(app: Celery) -> None:
    """Make all results of *app* abortable and awaitable.

    ``app.AsyncResult(id)``, ``app.send_task()``, restored groups, children and parents
    are AbortableAsyncResults then, also those of tasks of other classes. A second call
    does nothing.
    """
    if not issubclass(app.AsyncResult, AbortableAsyncResult):
        name = "AsyncResult"  # pickle finds the class of a result by this name
        result_class = app.subclass_with_self(
            AbortableAsyncResult, name=name, reverse=name
        )
        cast("Any", app).AsyncResult = result_class
