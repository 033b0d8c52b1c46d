"""The client: a pool, a listener and a hub, for one app on one event loop."""

import asyncio
import logging
from functools import partial
from types import TracebackType
from typing import Any, Self

from anyio import create_task_group, move_on_after, to_thread
from celery import Celery, states
from celery.result import EagerResult

from aioabort.exceptions import (
    AioabortError,
    ClientClosed,
    ResultsElsewhere,
    StoreError,
    WaitTimeout,
)
from aioabort.generics import GenericTask, P, R
from aioabort.postgres.connection import connect, open_pool
from aioabort.postgres.listener import HEARTBEAT, listen, until_lost
from aioabort.postgres.store import Store, open_store
from aioabort.producer.codec import decode, from_meta, value_of
from aioabort.producer.hub import Hub
from aioabort.producer.limits import check_grace, check_task_id, check_text
from aioabort.producer.result import AbortableAsyncResult
from aioabort.reconnect import Connectivity, keep_running
from aioabort.records import AbortReceipt, TaskRow, TaskSnapshot
from aioabort.settings import read_settings
from aioabort.watcher import SLOWER_WHEN_NOTIFIED

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
        self._opened: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._store: Store | None = None
        self._hub = Hub(self._settings.poll_interval)
        self._backend: Any = None

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
        if self._opened is None:
            loop = asyncio.get_running_loop()
            self._opened = loop.create_future()
            # A task of its own: cancel scopes and connections belong to one task,
            # and ours is ended with the loop by whoever runs it, if not before.
            self._task = loop.create_task(self._run(self._opened), name="aioabort")
        await asyncio.shield(self._opened)

    async def aclose(self) -> None:
        """Close all connections; whoever still awaits a task gets ClientClosed."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    @property
    def is_closed(self) -> bool:
        """Whether it was opened once, and is of no use any more."""
        return self._task is not None and self._task.done()

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
        store = self._opened_store()
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
        if self._opened_store().has_results:
            return decode(row, self._backend)
        return from_meta(row, await self._read_elsewhere(task_id))

    async def wait(self, task_id: str, timeout: float | None = None) -> Any:
        """Return the task's value when it has ended, or raise the error that ended it.

        Raises TaskAborted if it was aborted, and WaitTimeout after *timeout* seconds;
        the task goes on then. While PostgreSQL is away, it goes on waiting.
        """
        check_task_id(task_id)
        if not self._opened_store().has_results:
            raise ResultsElsewhere(
                f"There is no table {self._settings.task_table!r} with results in "
                f"{self._settings.dsn}: aioabort cannot await them"
            )
        return value_of(decode(await self._finished(task_id, timeout), self._backend))

    async def _finished(self, task_id: str, timeout: float | None) -> TaskRow:
        if timeout is not None and timeout <= 0:
            if row := (await self._opened_store().finished([task_id])).get(task_id):
                return row
        else:
            with move_on_after(timeout):
                return await self._hub.finished(task_id)
        trouble = self._hub.health.trouble
        raise WaitTimeout(task_id, timeout or 0, str(trouble or "")) from trouble

    async def _row(self, task_id: str) -> TaskRow:
        check_task_id(task_id)
        rows = await self._opened_store().snapshots([task_id])
        return rows.get(task_id) or TaskRow(task_id=task_id)

    async def _read_elsewhere(self, task_id: str) -> dict[str, Any]:
        """Ask Celery's own backend, which blocks, in a thread."""
        return await to_thread.run_sync(self._backend.get_task_meta, task_id)

    async def _hint(self, store: Store, task_id: str) -> None:
        try:
            await store.hint_workers([task_id])
        except StoreError as error:
            # The request is committed; the worker's poll will find it.
            logger.debug("aioabort client: no notification was sent: %s", error)

    def _opened_store(self) -> Store:
        if self._store is None or self.is_closed:
            raise ClientClosed(
                "The client is not open: use it in 'async with', or open()"
            )
        return self._store

    async def _run(self, opened: asyncio.Future[None]) -> None:
        """Hold the connections until this task is cancelled."""
        try:
            async with open_pool(
                self._settings.dsn, self._settings.pool_max_size
            ) as pool:
                # Creates Celery's table, if that is its way, before we look for it.
                self._backend = await to_thread.run_sync(lambda: self.app.backend)
                store = await open_store(pool, self._settings)
                self._store = store
                opened.set_result(None)
                await self._serve(store)
        except Exception as error:
            if opened.done():
                raise
            opened.set_exception(error)
        finally:
            if not opened.done():
                opened.cancel()
            self._hub.fail_all(ClientClosed("The client was closed"))

    async def _serve(self, store: Store) -> None:
        watcher = self._hub.watcher
        interval = self._settings.poll_interval
        async with create_task_group() as group:
            look = partial(self._hub.look_for_ends, store)
            group.start_soon(keep_running, partial(watcher.run, look), self._hub.health)
            if self._settings.notify:
                health = Connectivity("aioabort client's listener", interval)
                group.start_soon(
                    keep_running,
                    partial(self._listen, store, health),
                    health,
                    partial(watcher.pace, interval),
                )

    async def _listen(self, store: Store, health: Connectivity) -> None:
        watcher = self._hub.watcher
        async with connect(self._settings.listen_dsn) as link:
            refusal = await listen(link, store.done_channel, watcher.on_hint)
            if refusal is not None:
                logger.info("aioabort client: polling only, as %s", refusal)
            else:
                watcher.pace(self._settings.poll_interval * SLOWER_WHEN_NOTIFIED)
            health.recovered()
            # Whatever ended before we listened sent its notification to nobody.
            watcher.hint_all()
            await until_lost(link, HEARTBEAT)


def _receipt(row: TaskRow | None, task_id: str) -> AbortReceipt:
    """Return the receipt of a request that was refused, from the row that refused it."""
    if row is not None and row.state in states.READY_STATES:
        return AbortReceipt(
            task_id=task_id, answer="finished", state=row.state, request=row.request
        )
    request = row.request if row is not None else None
    return AbortReceipt(task_id=task_id, answer="requested_before", request=request)
