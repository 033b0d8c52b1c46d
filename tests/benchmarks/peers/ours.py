"""aioabort, with its defaults."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from celery import Celery

from aioabort import AbortClient

from ..marks import Board
from ..place import Place, make_app
from ..workers import celery_worker
from .stoppers import Named, Stopper

NOTIFIED = "aioabort"
POLLED = "aioabort, polling alone"

#: What is told of a body, by the name of its task.
BODIES = {
    "loop": "checks in a loop",
    "wait": "token.wait()",
    "coroutine": "coroutine",
    "sleep": "time.sleep(60), raise mode",
    "crowd": "500 coroutines, one bulk request",
}


@asynccontextmanager
async def open_client(dsn: str, *, notify: bool = True) -> AsyncGenerator[AbortClient]:
    """Open a client; it listens when the block begins."""
    async with AbortClient(make_app(dsn, aioabort_notify=notify)) as client:
        while notify and client.health().mode != "notify":
            await asyncio.sleep(0.01)
        yield client


@asynccontextmanager
async def notified(
    dsn: str, _waiters: int
) -> AsyncGenerator[Callable[[str], Awaitable[Any]]]:
    """Wait with notifications."""
    async with open_client(dsn) as client:
        yield client.wait


@asynccontextmanager
async def polled(
    dsn: str, _waiters: int
) -> AsyncGenerator[Callable[[str], Awaitable[Any]]]:
    """Wait without them."""
    async with open_client(dsn, notify=False) as client:
        yield client.wait


@dataclass
class Aborting(Named):
    """Aborts tasks of a worker; ``task`` is their name."""

    client: AbortClient
    app: Celery
    task: str

    async def start(self, key: str) -> str:
        """Send a task."""
        return (await asyncio.to_thread(self.app.send_task, self.task, (key,))).id

    async def abort(self, handle: str) -> None:
        """Ask it to stop."""
        await self.client.abort(handle)


@asynccontextmanager
async def stoppers(
    place: Place, board: Board, dsn: str, pool: str
) -> AsyncGenerator[list[Stopper]]:
    """Run two workers of *pool*: one is notified, and one polls."""
    names = ["loop", "wait", "coroutine"]
    if pool == "prefork":
        # No thread but the main one can be woken from its sleep.
        names.append("sleep")
    async with (
        celery_worker(place, board, dsn, pool, 2) as worker,
        celery_worker(place, board, dsn, pool, 2, aioabort_notify=False) as polling,
        AbortClient(worker.app) as client,
    ):
        yield [
            *(
                Aborting(
                    NOTIFIED, pool, BODIES[name], client, worker.app, f"ours.{name}"
                )
                for name in names
            ),
            Aborting(POLLED, pool, BODIES["loop"], client, polling.app, "ours.loop"),
        ]
