"""Reads any result backend of Celery, which blocks, in one thread."""

import asyncio
from collections.abc import Sequence
from functools import partial
from time import sleep
from typing import Any, Final

from celery import Celery
from celery.backends.base import BaseKeyValueStoreBackend
from celery.backends.filesystem import FilesystemBackend

from aioabort.celery_compat import task_id_of_key
from aioabort.concurrency.blocking import BlockingThreads
from aioabort.exceptions import StoreUnavailable
from aioabort.external.readings import (
    PAYLOAD_ERRORS,
    Meta,
    Reading,
    decoded,
    nothing_stored,
    too_late,
    unreadable,
)
from aioabort.orm import close_connection

#: Seconds until a file that cannot be decoded is read again.
REREAD_AFTER: Final = 0.05


class BlockingReader:
    """Reads the result backend of an app, many tasks in one call if it can do that.

    One thread makes all calls: some backends are bound to their thread, and each further
    thread would open a backend and a connection. After a read that failed, a new thread
    takes over: some client libraries never renew the connection of a thread.
    """

    def __init__(self, app: Celery, name: str) -> None:
        """*name* is that of the thread."""
        self._app: Final = app
        self._name: Final = name
        self._thread = BlockingThreads(name)
        self._is_open = False

    async def open_backend(self) -> Any:
        """Return the app's backend, made in the thread; some connect when made."""
        backend = await self._thread.run(lambda: self._app.backend)
        self._is_open = True
        return backend

    async def read(
        self, task_ids: Sequence[str], timeout: float | None = None
    ) -> dict[str, Reading]:
        """Return what is stored for each task; the thread goes on after *timeout*."""
        thread = self._thread
        try:
            async with asyncio.timeout(timeout):
                return await thread.run(lambda: _read(self._app, task_ids))
        except TimeoutError as error:
            raise too_late(timeout or 0) from error
        except StoreUnavailable:
            if thread is self._thread:
                self.stop()
                self._thread = BlockingThreads(self._name)
            raise

    def stop(self) -> None:
        """Let the thread end, and close what only it can close."""
        close = partial(close_connection, self._app) if self._is_open else None
        self._thread.stop(close)


def _read(app: Celery, task_ids: Sequence[str]) -> dict[str, Reading]:
    try:
        backend: Any = app.backend
        if not isinstance(backend, BaseKeyValueStoreBackend):
            return {
                task_id: decoded(
                    backend.get_task_meta, task_id, task_id, PAYLOAD_ERRORS
                )
                for task_id in task_ids
            }
        return {
            task_id: _decoded(backend, task_id, payload)
            for task_id, payload in _payloads(backend, task_ids).items()
        }
    except Exception as error:
        raise unreadable(error) from error


def _payloads(
    backend: BaseKeyValueStoreBackend, task_ids: Sequence[str]
) -> dict[str, Any]:
    """Return the payloads of the tasks; None for those without a result."""
    keys = [backend.get_key_for_task(task_id) for task_id in task_ids]
    try:
        values: Any = backend.mget(keys)
    except Exception as error:
        # Not every key-value store reads many keys at once; a Redis cluster does so if
        # they are in one slot.
        if not isinstance(error, NotImplementedError) and "slot" not in str(error):
            raise
        values = [backend.get(key) for key in keys]
    if hasattr(values, "items"):
        task_id_of = task_id_of_key(backend)
        named = {task_id_of(key): value for key, value in values.items()}
        return {task_id: named.get(task_id) for task_id in task_ids}
    return dict(zip(task_ids, values, strict=True))


def _decoded(backend: Any, task_id: str, payload: Any) -> Meta | Exception:
    # As Celery does: an empty payload is none.
    if not payload:
        return nothing_stored()
    reading = decoded(backend.decode_result, payload, task_id)
    if isinstance(reading, Exception) and isinstance(backend, FilesystemBackend):
        # Celery writes a file in place: it may be half written.
        sleep(REREAD_AFTER)
        again = backend.get(backend.get_key_for_task(task_id))
        if again != payload:
            reading = decoded(backend.decode_result, again, task_id)
            # It is still being written: a later poll finds the whole.
            return nothing_stored() if isinstance(reading, Exception) else reading
    return reading
