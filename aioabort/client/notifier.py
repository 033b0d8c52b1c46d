"""Notifications to the workers: at once while requests are few, in batches otherwise."""

import asyncio
import logging
from collections.abc import Iterable
from functools import partial
from itertools import islice
from typing import Never

from anyio import sleep

from aioabort.batching import BatchSender
from aioabort.exceptions import StoreError
from aioabort.poller import BATCH_SIZE
from aioabort.postgres.request_store import RequestStore
from aioabort.settings import Settings

#: Ids that are kept to be sent again; the workers' poll finds the others.
MOST_PENDING = 10_000

logger: logging.Logger = logging.getLogger(__name__)


class WorkerNotifier:
    """Notifies workers of abort requests that are committed.

    A notification that fails is sent again after the poll interval. Without it, workers
    would find the request only by their poll, which is slow while they listen.
    """

    def __init__(self, settings: Settings) -> None:
        self._retry_after = settings.poll_interval
        self._sender = BatchSender(settings.timing.notify_gap)
        self._pending: dict[str, None] = {}

    def notify(self, task_ids: Iterable[str]) -> None:
        """Have workers notified of *task_ids*, soon; returns at once."""
        self._pending.update(dict.fromkeys(task_ids))
        self._sender.wake()

    async def run(self, store: RequestStore) -> Never:
        """Send notifications whenever ids are pending."""
        await self._sender.run(partial(self._send, store))

    async def drain(self, store: RequestStore) -> bool:
        """Send all pending notifications; return whether that succeeded."""
        while task_ids := list(islice(self._pending, BATCH_SIZE)):
            for task_id in task_ids:
                del self._pending[task_id]
            try:
                await store.notify_workers(task_ids)
            except StoreError as error:
                logger.debug("aioabort client: no notification was sent: %s", error)
                if len(self._pending) < MOST_PENDING:
                    self.notify(task_ids)
                return False
            except asyncio.CancelledError:
                # The client is being closed, and calls drain() for the last time.
                self.notify(task_ids)
                raise
        return True

    async def _send(self, store: RequestStore) -> None:
        if not await self.drain(store):
            await sleep(self._retry_after)
