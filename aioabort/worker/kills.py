"""The end of grace: tasks that still run are killed, by Celery's own means.

``revoke(terminate=True)`` ends the process that runs the task, which only some pools
have one of. First comes the process itself; one that is too busy or stuck is helped
by another that has something to do.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Never

from anyio import move_on_after
from billiard.process import current_process

from aioabort import telemetry
from aioabort.postgres.store import Store
from aioabort.worker.run import Run

#: Seconds after which a kill that is due is carried out by somebody else.
OVERDUE = 5.0

logger: logging.Logger = logging.getLogger(__name__)


def can_terminate() -> bool:
    """Whether this process runs one task at a time, for a parent that can end it."""
    return current_process().name != "MainProcess"


class Kills:
    """The kills that the runs of this process have before them."""

    def __init__(self, revoke: Callable[[str], object]) -> None:
        self._revoke = revoke
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
                    await self._kill(store, task_id)

    async def _end(self, store: Store, run: Run) -> None:
        request = run.request
        if run.has_ended or request is None:
            return
        if not can_terminate():
            logger.warning(
                "aioabort worker: task %s cannot be killed after its grace: "
                "its pool has no process to end",
                run.task_id,
            )
            await store.waive_kill(request)
        elif killed := await store.claim_kill(request):
            telemetry.stopped(killed)
            await self._kill(store, run.task_id)

    async def _kill(self, store: Store, task_id: str) -> None:
        logger.warning("aioabort worker: killing task %s, its grace is over", task_id)
        # By then, this process may be the one that has been ended.
        await store.hint_clients([task_id])
        try:
            # Not anyio's threads, which are greenlets where the pool patched them.
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, self._revoke, task_id)
        except Exception:
            logger.exception("aioabort worker: task %s could not be killed", task_id)
