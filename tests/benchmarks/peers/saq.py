"""saq on PostgreSQL, with its default of a poll for aborts every second."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from saq import Job, Queue, Worker

from .. import bodies
from ..marks import Board, mark
from ..place import Place
from ..workers import program, until_marked
from .stoppers import Named, Stopper

NAME = "saq"


@dataclass
class Aborting(Named):
    """Aborts jobs."""

    queue: Queue

    async def start(self, key: str) -> Job:
        """Send a job."""
        job = await self.queue.enqueue("coroutine", mark_key=key, timeout=0)
        assert job is not None
        return job

    async def abort(self, handle: Job) -> None:
        """Ask it to stop."""
        await handle.abort("bench")


@asynccontextmanager
async def stoppers(place: Place, board: Board) -> AsyncGenerator[list[Stopper]]:
    """Run a worker, on a database of its own."""
    with place.database() as dsn:
        queue = Queue.from_url(dsn)
        await queue.connect()
        try:
            async with program(place.folder, "-m", __name__, dsn) as process:
                key = uuid4().hex
                await queue.enqueue("ready", mark_key=key)
                await until_marked(process, board, key)
                yield [Aborting(NAME, "asyncio", "coroutine", queue)]
        finally:
            await queue.disconnect()


async def ready(_context: Any, *, mark_key: str) -> None:
    """Tell that the worker works."""
    mark(mark_key, "ready")


async def coroutine(_context: Any, *, mark_key: str) -> None:
    """Wait to be cancelled."""
    await bodies.until_cancelled(mark_key)


async def work(dsn: str) -> None:
    """Be the worker."""
    queue = Queue.from_url(dsn)
    await queue.connect()
    await Worker(queue, [ready, coroutine], concurrency=2).start()


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:]))
