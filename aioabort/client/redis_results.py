"""Results in Redis: read as they are published, and large ones apart from the others."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from anyio import create_task_group

from aioabort.client.external_results import ExternalResults
from aioabort.client.redis_listener import OnNotification, RedisListener
from aioabort.exceptions import StoreError, StoreUnavailable
from aioabort.external.readings import Reading, Unread, unreadable
from aioabort.external.redis_reader import RedisReader
from aioabort.postgres.request_store import RequestStore
from aioabort.timing import Timing


class RedisResults(ExternalResults):
    """Reads results from Redis over one connection, and listens over another one.

    A large result is read over a connection that is closed afterwards.
    """

    def __init__(
        self,
        store: RequestStore,
        backend: Any,
        reader: RedisReader,
        timing: Timing,
    ) -> None:
        super().__init__(store, backend, reader, timing.statement_timeout)
        self._listener: Final = RedisListener(backend, timing)
        self._server: Final = reader.server
        self._redis_reader: Final = reader
        #: Large values that were read for the next query; None while they are read.
        self._large: Final[dict[str, Reading | None]] = {}
        self._to_read: Final[asyncio.Queue[str]] = asyncio.Queue()

    def add(self, task_id: str) -> bool:
        """Listen for *task_id*; return whether it will be queried when we do."""
        return self._listener.add(task_id)

    def remove(self, task_id: str) -> None:
        """Listen no more for *task_id*."""
        self._listener.remove(task_id)
        self._large.pop(task_id, None)

    async def listen(
        self, on_notification: OnNotification, on_listening: Callable[[], None]
    ) -> None:
        """Call *on_notification* with the tasks that are to be queried, for ever.

        *on_listening* is called when notifications arrive. Raises StoreError when the
        connection is lost.
        """
        async with self._server.client() as client, client.pubsub() as pubsub:
            try:
                await self._listener.run(pubsub, on_notification, on_listening)
            except* StoreUnavailable:
                raise
            except* Exception as errors:  # noqa: BLE001 - of any class of redis-py's
                hide = self._server.hide_secrets
                problem = unreadable(errors.exceptions[0], hide)
                raise problem from problem.__cause__

    async def read_large(self, on_notification: OnNotification) -> None:
        """Read the large values that the shared reads left out, for ever.

        Calls *on_notification* with each of their tasks: the next query has the value.
        """
        async with create_task_group() as group:
            while True:
                task_id = await self._to_read.get()
                group.start_soon(self._read_one, task_id, on_notification)

    async def _read_one(self, task_id: str, on_notification: OnNotification) -> None:
        try:
            reading = await self._redis_reader.read_large(task_id)
        except StoreError as error:
            if isinstance(error, StoreUnavailable):
                # The next poll tries again.
                self._large.pop(task_id, None)
                return
            reading = error
        if task_id in self._large:
            self._large[task_id] = reading
            on_notification([task_id])

    async def _read_for_all(self, task_ids: Sequence[str]) -> dict[str, Reading]:
        readings = await super()._read_for_all(task_ids)
        for task_id, reading in list(readings.items()):
            if not isinstance(reading, Unread):
                continue
            value = self._large.get(task_id)
            if value is not None:
                readings[task_id] = value
                del self._large[task_id]
                continue
            del readings[task_id]
            if task_id not in self._large:
                self._large[task_id] = None
                self._to_read.put_nowait(task_id)
        return readings

    async def _read_for_one(
        self, task_ids: Sequence[str], timeout: float
    ) -> dict[str, Reading]:
        readings = await super()._read_for_one(task_ids, timeout)
        for task_id, reading in readings.items():
            if isinstance(reading, Unread):
                readings[task_id] = await self._redis_reader.read_large(task_id)
        return readings
