"""Reads results from Redis, over one asyncio connection."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from aioabort.external.readings import (
    Meta,
    Reading,
    Unread,
    decoded,
    nothing_stored,
    too_late,
    unreadable,
)
from aioabort.external.redis_server import RedisServer
from aioabort.timing import Timing

# All who wait share a read, and would wait for a large value. So a read returns 2 MB,
# and values below 1 kB in any case; of the others, the size. A key that holds no string
# is the error of its own task.
_READ: Final = """
    local room = 2000000
    local values = {}
    for number, key in ipairs(KEYS) do
        local size = redis.pcall('STRLEN', key)
        if type(size) == 'number' and (size < 1000 or size <= room) then
            values[number] = redis.call('GET', key)
            room = room - size
        else
            values[number] = size
        end
    end
    return values
"""

#: Values that are decoded before the event loop runs other code.
DECODE_BATCH: Final = 100

#: Connections for large values at the same time.
MOST_LARGE: Final = 4


class RedisReader:
    """Reads the results of a Redis backend, as Celery's own backend decodes them.

    A server that does not let the user run scripts is read by MGET, with its large values.
    """

    def __init__(
        self, backend: Any, server: RedisServer, client: Any, timing: Timing
    ) -> None:
        self._backend: Final = backend
        self.server: Final = server
        self._client: Final[Any] = client
        self._timeout: Final = timing.statement_timeout
        #: The connection is used by one call at a time.
        self._lock: Final = asyncio.Lock()
        self._large: Final = asyncio.Semaphore(MOST_LARGE)
        self._runs_scripts = True

    async def read(
        self, task_ids: Sequence[str], timeout: float | None = None
    ) -> dict[str, Reading]:
        """Return what is stored for each task, and Unread for large values."""
        if not task_ids:
            return {}
        async with self._limit(timeout or self._timeout):
            keys = [self._backend.get_key_for_task(task_id) for task_id in task_ids]
            async with self._lock:
                values = await self._fetch(keys)
        readings: dict[str, Reading] = {}
        for count, (task_id, value) in enumerate(zip(task_ids, values, strict=True), 1):
            readings[task_id] = self._reading(task_id, value)
            if not count % DECODE_BATCH:
                await asyncio.sleep(0)
        return readings

    async def read_large(self, task_id: str) -> Meta | Exception:
        """Return what is stored for the task, over a connection of its own."""
        async with (
            self._large,
            self._limit(self.server.patience),
            self.server.client() as client,
        ):
            value = await client.get(self._backend.get_key_for_task(task_id))
        return self._decoded(task_id, value)

    @asynccontextmanager
    async def _limit(self, timeout: float) -> AsyncGenerator[None]:
        """Raise the errors of the block as StoreError; the block takes *timeout* at most."""
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                yield
        except Exception as error:
            if limit.expired():
                raise too_late(timeout) from error
            problem = unreadable(error, self.server.hide_secrets)
            raise problem from problem.__cause__

    async def _fetch(self, keys: list[Any]) -> list[Any]:
        if self._runs_scripts:
            try:
                return list(await self._client.eval(_READ, len(keys), *keys))
            except Exception as error:
                if not _is_unknown_command(error):
                    raise
                self._runs_scripts = False
        return list(await self._client.mget(keys))

    def _reading(self, task_id: str, value: Any) -> Reading:
        if isinstance(value, int):
            return Unread(value)
        return self._decoded(task_id, value)

    def _decoded(self, task_id: str, value: Any) -> Meta | Exception:
        if isinstance(value, Exception):
            return value
        # As Celery does: an empty value is none.
        if not value:
            return nothing_stored()
        return decoded(self._backend.decode_result, value, task_id)


def _is_unknown_command(error: Exception) -> bool:
    """Whether the server or the rights of the user exclude a command."""
    text = str(error).lower()
    return type(error).__name__ == "NoPermissionError" or "unknown command" in text
