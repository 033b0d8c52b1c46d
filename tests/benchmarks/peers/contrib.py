"""Celery's own: celery.contrib.abortable, and ``get()`` in a thread for each waiter.

Celery pools its connections only in a process that it believes to be forked by a
worker; a web process connects anew for each statement. Both are measured.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from celery import Celery
from celery.contrib.abortable import AbortableAsyncResult
from celery.exceptions import TimeoutError as CeleryTimeoutError

from ..marks import Board, Mark
from ..place import Place, make_app
from ..workers import celery_worker
from .stoppers import Named, Stopper, until_dead

NAME = "celery.contrib.abortable"
POOLED = "celery.contrib.abortable, pooled engine"
DEFAULT = "celery.contrib.abortable, default engine"
#: Whether the engine pools, by name.
ENGINES = {POOLED: True, DEFAULT: False}

GET_POOLED = "thread per get(), pooled engine"
GET_DEFAULT = "thread per get(), default engine"


def app_of(dsn: str, *, pooled: bool) -> Celery:
    """Return an app whose backend pools its connections, or does not."""
    app = make_app(dsn)
    if pooled:
        app.backend.session_manager.forked = True
    # The first one makes the engine.
    app.backend.ResultSession().close()
    return app


def abort(app: Celery, task_id: str) -> None:
    """Abort a task, as a web process does."""
    result: Any = AbortableAsyncResult(task_id, app=app)
    result.abort()


@asynccontextmanager
async def getting(
    dsn: str, waiters: int, *, pooled: bool
) -> AsyncGenerator[Callable[[str], Awaitable[Any]]]:
    """Wait in threads, one for each waiter."""
    app = app_of(dsn, pooled=pooled)
    loop = asyncio.get_running_loop()
    is_over = False

    def get(task_id: str) -> Any:
        while not is_over:
            try:
                return app.AsyncResult(task_id).get(timeout=2)
            except CeleryTimeoutError:
                continue
        return None

    with ThreadPoolExecutor(waiters) as threads:
        try:
            yield partial(loop.run_in_executor, threads, get)
        finally:
            is_over = True
            await asyncio.to_thread(threads.shutdown, cancel_futures=True)
            for engine in app.backend.session_manager._engines.values():
                engine.dispose()


@dataclass
class Aborting(Named):
    """Aborts tasks that look for it."""

    app: Celery

    async def start(self, key: str) -> str:
        """Send a task."""
        return (await asyncio.to_thread(self.app.send_task, "contrib.loop", (key,))).id

    async def abort(self, handle: str) -> None:
        """Ask it to stop; in a thread, because it blocks."""
        await asyncio.to_thread(abort, self.app, handle)


@dataclass
class Revoking(Named):
    """Kills the process of a task."""

    app: Celery

    async def start(self, key: str) -> str:
        """Send a task."""
        return (await asyncio.to_thread(self.app.send_task, "plain.sleep", (key,))).id

    async def abort(self, handle: str) -> None:
        """Have its process killed; in a thread, because it blocks."""
        await asyncio.to_thread(self.app.control.revoke, handle, terminate=True)

    async def stopped(self, board: Board, key: str, started: Mark) -> float:  # noqa: ARG002
        """Return the moment at which the process was gone."""
        return await until_dead(started.pid)


@asynccontextmanager
async def stoppers(
    place: Place, board: Board, dsn: str, pool: str
) -> AsyncGenerator[list[Stopper]]:
    """Run a worker of *pool*."""
    async with celery_worker(place, board, dsn, pool, 2) as worker:
        found: list[Stopper] = [Aborting(NAME, pool, "checks in a loop", worker.app)]
        # Revoking needs a broker that broadcasts, and a pool of processes.
        if pool == "prefork" and place.broker["broker_url"].startswith("redis"):
            body = "time.sleep(60), killed"
            found.append(Revoking("revoke(terminate=True)", pool, body, worker.app))
        yield found
