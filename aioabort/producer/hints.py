"""Telling workers of requests: beside the request, and of many at once if there are many."""

import asyncio
import logging
from collections.abc import Iterable
from itertools import islice
from typing import Never

from anyio import sleep

from aioabort.exceptions import StoreError
from aioabort.postgres.store import Store
from aioabort.watcher import BATCH

#: Seconds between two notifications: one that is sent makes others' commits wait.
GAP = 0.005

#: Ids that wait to be sent again; for more there is the workers' poll.
MOST = 10_000

logger: logging.Logger = logging.getLogger(__name__)


class Hints:
    """What workers are to be told to look at.

    Requests are committed before. A hint that fails is sent again: the workers, whose
    listening works, would poll at their slow pace only.
    """

    def __init__(self, pause: float) -> None:
        """Try what fails again every *pause* seconds."""
        self._pause = pause
        self._waiting: dict[str, None] = {}
        self._wake = asyncio.Event()

    def send(self, task_ids: Iterable[str]) -> None:
        """Have workers told of *task_ids*, soon; returns at once."""
        self._waiting.update(dict.fromkeys(task_ids))
        self._wake.set()

    async def keep_sending(self, store: Store) -> Never:
        """Send what there is, whenever there is something."""
        while True:
            await self._wake.wait()
            # The first is sent at once; those that follow it closely go together.
            await sleep(GAP if await self.drain(store) else self._pause)

    async def drain(self, store: Store) -> bool:
        """Send all that there is; return whether that succeeded."""
        self._wake.clear()
        while task_ids := list(islice(self._waiting, BATCH)):
            for task_id in task_ids:
                del self._waiting[task_id]
            try:
                await store.hint_workers(task_ids)
            except StoreError as error:
                logger.debug("aioabort client: no notification was sent: %s", error)
                if len(self._waiting) < MOST:
                    self.send(task_ids)
                return False
            except asyncio.CancelledError:
                # The client is being closed, and sends what is left.
                self.send(task_ids)
                raise
        return True
