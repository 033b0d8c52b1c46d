"""The connections of a client: a pool, a listener, and the hub that they serve."""

import asyncio
import logging
from functools import partial
from typing import Any

from anyio import create_task_group, to_thread
from celery import Celery

from aioabort.exceptions import ClientClosed
from aioabort.postgres.connection import connect, open_pool
from aioabort.postgres.listener import HEARTBEAT, listen, until_lost
from aioabort.postgres.store import Store, open_store
from aioabort.producer.hub import Hub
from aioabort.reconnect import Connectivity, keep_running
from aioabort.settings import Settings
from aioabort.watcher import SLOWER_WHEN_NOTIFIED

logger: logging.Logger = logging.getLogger(__name__)


class Connections:
    """What a client holds open, in an asyncio task of its own."""

    def __init__(self, app: Celery, settings: Settings) -> None:
        self.hub: Hub = Hub(settings.poll_interval)
        #: Celery's own backend, made when the connections are opened.
        self.backend: Any = None
        self._app = app
        self._settings = settings
        self._opened: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._store: Store | None = None

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
        """Close them all; whoever still awaits a task gets ClientClosed."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    @property
    def are_closed(self) -> bool:
        """Whether they were opened once, and are of no use any more."""
        return self._task is not None and self._task.done()

    @property
    def store(self) -> Store:
        """The store, over the pool. Raises ClientClosed unless they are open."""
        if self._store is None or self.are_closed:
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
                self.backend = await to_thread.run_sync(lambda: self._app.backend)
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
            self.hub.fail_all(ClientClosed("The client was closed"))

    async def _serve(self, store: Store) -> None:
        watcher = self.hub.watcher
        interval = self._settings.poll_interval
        async with create_task_group() as group:
            look = partial(self.hub.look_for_ends, store)
            group.start_soon(keep_running, partial(watcher.run, look), self.hub.health)
            if self._settings.notify:
                health = Connectivity("aioabort client's listener", interval)
                group.start_soon(
                    keep_running,
                    partial(self._listen, store, health),
                    health,
                    partial(watcher.pace, interval),
                )

    async def _listen(self, store: Store, health: Connectivity) -> None:
        watcher = self.hub.watcher
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
