"""The connections of a client: a pool, a listener, and the waiters that they serve."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial

from anyio import CancelScope, create_task_group, move_on_after
from anyio.abc import TaskGroup
from celery import Celery

from aioabort.client.notifier import WorkerNotifier
from aioabort.client.redis_results import RedisResults
from aioabort.client.result_sources import ResultSource, open_result_source
from aioabort.client.waiters import Waiters
from aioabort.exceptions import ClientClosed, WrongLoop
from aioabort.models import ClientHealth
from aioabort.orm import with_orm_tables
from aioabort.poller import (
    SLOWER_WHEN_NOTIFIED,
    pace_with_notifications,
    pace_without_notifications,
)
from aioabort.postgres.connection import connect
from aioabort.postgres.listener import keep_listening, watch_connection
from aioabort.postgres.pool import AnyPool, Pool, borrow_pool, check_pool, open_pool
from aioabort.postgres.request_store import (
    RequestStore,
    open_request_store,
    open_request_store_on_lent_pool,
)
from aioabort.reconnect import Connectivity, run_with_reconnect
from aioabort.settings import Settings
from aioabort.telemetry import instruments

logger: logging.Logger = logging.getLogger(__name__)

NOT_OPEN = "the client is not open"
CONNECTING = "the listener is not connected yet"


class Connections:
    """Opens the connections of a client, and holds them open in an asyncio task."""

    def __init__(
        self, app: Celery, settings: Settings, pool: "AnyPool | None" = None
    ) -> None:
        if pool is not None:
            check_pool(pool)
        self.settings: Settings = settings
        self.waiters: Waiters = Waiters(settings)
        self.notifier: WorkerNotifier = WorkerNotifier(settings)
        self._app = app
        self._pool = pool
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._open_stores: tuple[RequestStore, ResultSource] | None = None
        self._listener = Connectivity(
            "aioabort client's listener", settings.poll_interval
        )
        self._redis_listener = Connectivity(
            "aioabort client's Redis listener", settings.poll_interval
        )
        self._redis_listener.server = "Celery's result backend"
        self._large_results = Connectivity(
            "aioabort client's large results", settings.poll_interval
        )
        #: Called when the connections are closed, or could not be opened.
        self.on_closed: Callable[[], None] = lambda: None
        #: Why a listener gets no notifications, or None if it does.
        self._why_silent: dict[Connectivity, str | None] = {self._listener: NOT_OPEN}

    async def open(self) -> None:
        """Connect; return when that is done, and at once if it was done before.

        Raises StoreUnavailable or StoreError if PostgreSQL cannot be used, ClientClosed
        if it was closed before, and WrongLoop on another loop than the first time.
        """
        if self._opened is None:
            self._loop = asyncio.get_running_loop()
            self._opened = self._loop.create_future()
            # Cancel scopes and connections belong to the task that enters them, and
            # open() and aclose() may be called in different tasks. At the latest,
            # asyncio.run() cancels this one when the loop ends.
            self._task = self._loop.create_task(
                self._run(self._opened), name="aioabort"
            )
            self._task.add_done_callback(self._on_end)
        if not self.are_closed:
            self._check_loop()
        await asyncio.shield(self._opened)
        if self.are_closed:
            raise ClientClosed("The client was closed, and cannot be opened again")

    async def aclose(self) -> None:
        """Close all connections; coroutines that still await a task get ClientClosed."""
        if self._task is not None and not self.are_closed:
            self._check_loop()
            self._task.cancel()
            await asyncio.wait([self._task])

    @property
    def are_closed(self) -> bool:
        """Whether they were opened and then closed; they cannot be opened again."""
        return self._task is not None and self._task.done()

    @property
    def is_open(self) -> bool:
        """Whether they can be used."""
        return self._open_stores is not None and not self.are_closed

    @property
    def store(self) -> RequestStore:
        """The store of abort requests, which uses the pool.

        Raises ClientClosed unless the client is open, and WrongLoop on another loop.
        """
        return self._require_open()[0]

    @property
    def results(self) -> ResultSource:
        """Celery's results; raises what ``store`` raises."""
        return self._require_open()[1]

    def health(self) -> ClientHealth:
        """Return whether notifications arrive, and how old an answer may be."""
        is_notified = self._why_polling is None and not self.are_closed
        users = self._users
        latest = max(users, key=lambda connectivity: connectivity.last_error_at)
        return ClientHealth(
            mode="notify" if is_notified else "poll",
            reason=None if is_notified else self._why_polling or NOT_OPEN,
            staleness=self.settings.poll_interval
            * (SLOWER_WHEN_NOTIFIED if is_notified else 1),
            waiters=self.waiters.size,
            is_connected=self.is_open and not any(each.trouble for each in users),
            last_error=latest.last_error,
        )

    @property
    def last_error_at(self) -> float:
        """When PostgreSQL was away or busy, at the latest, by time.monotonic; or 0."""
        return max(each.last_error_at for each in self._users)

    @property
    def _users(self) -> tuple[Connectivity, ...]:
        return self.waiters.connectivity, self._listener, self._redis_listener

    @property
    def _why_polling(self) -> str | None:
        """Why not all notifications arrive, or None if they do."""
        return next(filter(None, self._why_silent.values()), None)

    def _require_open(self) -> tuple[RequestStore, ResultSource]:
        if self._open_stores is None or self.are_closed:
            raise ClientClosed(
                "The client is not open: use it in 'async with', or open()"
            )
        self._check_loop()
        return self._open_stores

    def _check_loop(self) -> None:
        if self._loop is not asyncio.get_running_loop():
            raise WrongLoop(
                "The client belongs to another event loop: each loop needs its own"
            )

    async def _run(self, opened: asyncio.Future[None]) -> None:
        """Hold the connections until this task is cancelled."""
        try:
            async with (
                self._pool_context() as pool,
                open_result_source(
                    self._app,
                    partial(self._open_request_store, pool),
                    self.settings.timing,
                ) as stores,
            ):
                self._open_stores = stores
                opened.set_result(None)
                store, results = stores
                try:
                    await self._serve(store, results)
                finally:
                    seconds = self.settings.timing.close_timeout
                    # At the exit of the interpreter, no thread may start to look up the
                    # host; the workers' poll finds what notifications do not tell.
                    with (
                        CancelScope(shield=True),
                        move_on_after(seconds),
                        suppress(RuntimeError),
                    ):
                        await self.notifier.drain(store)
        except Exception as error:
            if opened.done():
                raise
            opened.set_exception(error)

    def _on_end(self, _task: object) -> None:
        # Not in a finally of _run(), which may be cancelled before it begins.
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(ClientClosed("The client was closed"))
            # Otherwise asyncio logs it, if the caller of open() was cancelled.
            self._opened.exception()
        self.waiters.close()
        self.on_closed()

    def _pool_context(self) -> AbstractAsyncContextManager[Pool]:
        timing = self.settings.timing
        if self._pool is not None:
            return borrow_pool(self._pool, timing)
        return open_pool(self.settings.dsn, self.settings.pool_max_size, timing)

    async def _open_request_store(self, pool: Pool) -> RequestStore:
        settings = await with_orm_tables(self._app, self.settings)
        if self._pool is None:
            return await open_request_store(pool, settings)
        return await open_request_store_on_lent_pool(pool, settings)

    async def _serve(self, store: RequestStore, results: ResultSource) -> None:
        waiters = self.waiters
        on_notification = waiters.poller.on_notification
        if not store.has_results:
            waiters.connectivity.server = "Celery's result backend"
        instruments().mode("client", "poll")
        async with create_task_group() as group:
            poll = partial(waiters.poller.run, partial(waiters.query, results))
            group.start_soon(run_with_reconnect, poll, waiters.connectivity)
            group.start_soon(self.notifier.run, store)
            if store.has_results:
                fetch = partial(
                    waiters.large_results.run, store.read_part, waiters.deliver
                )
                group.start_soon(run_with_reconnect, fetch, self._large_results)
            if isinstance(results, RedisResults):
                read = partial(results.read_large, on_notification)
                group.start_soon(run_with_reconnect, read, self._large_results)
            if not self.settings.notify:
                self._why_silent[self._listener] = "aioabort_notify is False"
                return
            self._start_listener(group, partial(self._listen, store), self._listener)
            if isinstance(results, RedisResults):
                waiters.awaited_tasks = results
                on_listening = partial(self._on_listening, self._redis_listener, None)
                self._start_listener(
                    group,
                    partial(results.listen, on_notification, on_listening),
                    self._redis_listener,
                )

    def _start_listener(
        self,
        group: TaskGroup,
        listen: Callable[[], Awaitable[object]],
        listener: Connectivity,
    ) -> None:
        self._why_silent[listener] = CONNECTING
        on_lost = partial(self._on_lost, listener)
        group.start_soon(run_with_reconnect, listen, listener, on_lost)

    async def _listen(self, store: RequestStore) -> None:
        settings, on_notification = self.settings, self.waiters.poller.on_notification
        async with (
            connect(settings.listen_dsn, settings.timing) as connection,
            create_task_group() as group,
        ):
            group.start_soon(partial(watch_connection, connection, pings=True))
            await store.check_listener(connection)
            await keep_listening(
                connection,
                store.done_channel,
                on_notification,
                partial(self._on_listening, self._listener),
            )

    def _on_listening(self, listener: Connectivity, refusal: str | None) -> None:
        listener.recovered()
        if refusal is not None and refusal != self._why_silent[listener]:
            logger.info("aioabort client: polling only, as %s", refusal)
        self._why_silent[listener] = refusal
        self._set_pace()
        # The notifications of tasks that ended before LISTEN did not reach us.
        self.waiters.poller.poll_all_soon()

    def _on_lost(self, listener: Connectivity) -> None:
        self._why_silent[listener] = (
            f"the listener is not connected: {listener.trouble}"
        )
        self._set_pace()

    def _set_pace(self) -> None:
        """Poll more slowly while all notifications arrive."""
        is_notified = self._why_polling is None
        instruments().mode("client", "notify" if is_notified else "poll")
        pace = pace_with_notifications if is_notified else pace_without_notifications
        self.waiters.poller.set_pace(pace(self.settings.poll_interval))
