"""The end of grace: tasks that still run are killed, by Celery's own means.

``revoke(terminate=True)`` ends the process that runs the task, which only some pools
have one of. First comes the process itself; one that is too busy or stuck is helped
by another that has something to do.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from typing import Never

from anyio import move_on_after
from billiard.process import current_process
from celery import Celery

from aioabort.exceptions import StoreError
from aioabort.postgres.store import Store
from aioabort.worker.run import Run

#: Seconds after which a kill that is due, or has had no effect, is somebody else's.
OVERDUE = 5.0

logger: logging.Logger = logging.getLogger(__name__)


class Kills:
    """The kills that the runs of this process have before them."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._due: asyncio.Queue[Run] = asyncio.Queue()
        self._timers: dict[Run, asyncio.TimerHandle] = {}

    def plan(self, run: Run, seconds: float) -> None:
        """Kill the task of *run* in so many seconds, unless it has ended by then."""
        self.forget(run)
        loop = asyncio.get_running_loop()
        self._timers[run] = loop.call_later(seconds, self._due.put_nowait, run)

    def forget(self, run: Run) -> None:
        """Do not kill the task of *run* any more."""
        if timer := self._timers.pop(run, None):
            timer.cancel()

    async def keep_killing(self, store: Store, running: Collection[object]) -> Never:
        """Carry out kills, for ever; while *running* is not empty, those of others, too."""
        while True:
            with move_on_after(OVERDUE):
                await self._end(store, await self._due.get())
                continue
            if running:
                for task_id in await store.claim_overdue_kills(OVERDUE):
                    # A process that did nothing by now runs no Python: it would not
                    # heed SIGTERM either.
                    await self._kill(store, task_id, "SIGKILL")

    async def _end(self, store: Store, run: Run) -> None:
        request = run.request
        if request is None or run.has_ended:
            return
        obstacle = self._obstacle()
        if obstacle is not None:
            if await store.claim_kill(request):
                run.is_unkillable = True
                logger.warning(
                    "aioabort worker: task %s cannot be killed after its grace: %s",
                    run.task_id,
                    obstacle,
                )
        elif run.condemn() and await store.claim_kill(request):
            if await self._kill(store, run.task_id):
                loop = asyncio.get_running_loop()
                loop.call_later(OVERDUE, _end_process, run)
            else:
                run.spare()

    def _obstacle(self) -> str | None:
        """Return why no task of this process can be killed."""
        if current_process().name == "MainProcess":
            return "its pool has no process to end"
        if not self._app.conf.worker_enable_remote_control:
            return "worker_enable_remote_control is off"
        with self._app.connection_for_write() as connection:
            # Connects to nothing: it is the transport that is asked.
            if not connection.supports_exchange_type("fanout"):
                return "its broker has no remote control"
        return None

    async def _kill(self, store: Store, task_id: str, number: str = "SIGTERM") -> bool:
        logger.warning("aioabort worker: killing task %s, its grace is over", task_id)
        revoke = partial(
            self._app.control.revoke, task_id, terminate=True, signal=number
        )
        try:
            # Not anyio's threads, which are greenlets where the pool patched them.
            await asyncio.get_running_loop().run_in_executor(None, revoke)
        except Exception:
            logger.exception("aioabort worker: task %s could not be killed", task_id)
            with suppress(StoreError):
                await store.hasten([task_id], OVERDUE)
            return False
        return True


def _end_process(run: Run) -> None:
    """End this process, of which SIGTERM found the thread in a call that goes on."""
    if not run.has_ended:
        os.kill(os.getpid(), signal.SIGKILL)
