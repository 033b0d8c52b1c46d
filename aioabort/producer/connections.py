"""The connections of a client: a pool, a listener, and the hub that they serve."""

import asyncio
import logging
from contextlib import AbstractAsyncContextManager
from functools import partial

from anyio import CancelScope, create_task_group, move_on_after
from celery import Celery

from aioabort import telemetry
from aioabort.exceptions import ClientClosed, WrongLoop
from aioabort.postgres.connection import CLOSE_TIMEOUT, connect
from aioabort.postgres.listener import HEARTBEAT, keep_listening, until_lost
from aioabort.postgres.pool import AnyPool, Pool, borrow_pool, check_pool, open_pool
from aioabort.postgres.store import Store
from aioabort.producer.hints import Hints
from aioabort.producer.hub import Hub
from aioabort.producer.pace import notified, polling
from aioabort.producer.results import Results, open_results
from aioabort.reconnect import Connectivity, keep_running
from aioabort.records import ClientHealth
from aioabort.settings import Settings
from aioabort.watcher import SLOWER_WHEN_NOTIFIED

logger: logging.Logger = logging.getLogger(__name__)

NOT_OPEN = "the client is not open"
CONNECTING = "the listener is not connected yet"


class Connections:
    """What a client holds open, in an asyncio task of its own."""

    def __init__(
        self, app: Celery, settings: Settings, pool: "AnyPool | None" = None
    ) -> None:
        if pool is not None:
            check_pool(pool)
        self.hub: Hub = Hub(settings.poll_interval)
        #: For workers, sent while these are open.
        self.hints: Hints = Hints(settings.poll_interval)
        self._app = app
        self._settings = settings
        self._pool = pool
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._parts: tuple[Store, Results] | None = None
        self._listening = Connectivity(
            "aioabort client's listener", settings.poll_interval
        )
        #: Why no notification comes, or None if they do.
        self._refusal: str | None = NOT_OPEN

    async def open(self) -> None:
        """Connect; return when that is done, and at once if it was done before.

        Raises StoreUnavailable or StoreError if PostgreSQL cannot be used, ClientClosed
        if it was closed before, and WrongLoop on another loop than the first time.
        """
        if self._opened is None:
            self._loop = asyncio.get_running_loop()
            self._opened = self._loop.create_future()
            # A task of its own: cancel scopes and connections belong to one task,
            # and ours is ended with the loop by whoever runs it, if not before.
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
        """Close them all; whoever still awaits a task gets ClientClosed."""
        if self._task is not None and not self.are_closed:
            self._check_loop()
            self._task.cancel()
            await asyncio.wait([self._task])

    @property
    def are_closed(self) -> bool:
        """Whether they were opened once, and are of no use any more."""
        return self._task is not None and self._task.done()

    @property
    def store(self) -> Store:
        """The store, over the pool.

        Raises ClientClosed unless they are open, and WrongLoop on another loop.
        """
        return self._open()[0]

    @property
    def results(self) -> Results:
        """Celery's results; raises what ``store`` raises."""
        return self._open()[1]

    def health(self) -> ClientHealth:
        """Return how the client hears of what happens."""
        is_notified = self._refusal is None and not self.are_closed
        both = (self.hub.health, self._listening)
        latest = max(both, key=lambda health: health.last_error_at).last_error
        is_connected = self._parts is not None and not self.are_closed
        return ClientHealth(
            mode="notify" if is_notified else "poll",
            reason=None if is_notified else self._refusal or NOT_OPEN,
            staleness=self._settings.poll_interval
            * (SLOWER_WHEN_NOTIFIED if is_notified else 1),
            waiters=self.hub.size,
            is_connected=is_connected and not any(health.trouble for health in both),
            last_error=latest,
        )

    def _open(self) -> tuple[Store, Results]:
        if self._parts is None or self.are_closed:
            raise ClientClosed(
                "The client is not open: use it in 'async with', or open()"
            )
        self._check_loop()
        return self._parts

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
                open_results(self._app, pool, self._settings) as (store, results),
            ):
                self._parts = (store, results)
                opened.set_result(None)
                try:
                    await self._serve(store, results)
                finally:
                    with CancelScope(shield=True), move_on_after(CLOSE_TIMEOUT):
                        await self.hints.drain(store)
        except Exception as error:
            if opened.done():
                raise
            opened.set_exception(error)

    def _on_end(self, _task: object) -> None:
        # Not at the end of the coroutine: it may be cancelled before it has begun.
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(ClientClosed("The client was closed"))
            self._opened.exception()  # whoever waited for it may be gone
        self.hub.close()

    def _pool_context(self) -> AbstractAsyncContextManager[Pool]:
        if self._pool is not None:
            return borrow_pool(self._pool)
        return open_pool(self._settings.dsn, self._settings.pool_max_size)

    async def _serve(self, store: Store, results: Results) -> None:
        hub = self.hub
        if not store.has_results:
            hub.health.server = "Celery's result backend"
        telemetry.mode("client", "poll")
        async with create_task_group() as group:
            look = partial(hub.look, results)
            group.start_soon(keep_running, partial(hub.watcher.run, look), hub.health)
            group.start_soon(self.hints.keep_sending, store)
            if not self._settings.notify:
                self._refusal = "aioabort_notify is False"
                return
            self._refusal = CONNECTING
            listen = partial(self._listen, store)
            group.start_soon(keep_running, listen, self._listening, self._on_lost)

    async def _listen(self, store: Store) -> None:
        dsn = self._settings.listen_dsn
        on_hint = self.hub.watcher.on_hint
        async with connect(dsn) as link, create_task_group() as group:
            group.start_soon(until_lost, link, HEARTBEAT)
            await keep_listening(
                link, dsn, store.done_channel, on_hint, self._on_listening
            )

    def _on_listening(self, refusal: str | None) -> None:
        self._listening.recovered()
        if refusal is not None and refusal != self._refusal:
            logger.info("aioabort client: polling only, as %s", refusal)
        self._refusal = refusal
        telemetry.mode("client", "poll" if refusal else "notify")
        bound = self._settings.poll_interval
        self.hub.watcher.pace(polling(bound) if refusal else notified(bound))
        # Whatever ended before we listened sent its notification to nobody.
        self.hub.watcher.hint_all()

    def _on_lost(self) -> None:
        telemetry.mode("client", "poll")
        self._refusal = f"the listener is not connected: {self._listening.trouble}"
        self.hub.watcher.pace(polling(self._settings.poll_interval))
