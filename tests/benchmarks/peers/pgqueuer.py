"""pgqueuer, on asyncpg; a job can be cancelled that opts in with a scope."""

import asyncio
import json
import sys
import timeit
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
from pgqueuer import PgQueuer, Queries
from pgqueuer.models import Job

from .. import bodies
from ..marks import Board, mark
from ..place import Place
from ..workers import program, until_marked
from .stoppers import Named, Stopper

NAME = "pgqueuer"
CHECK = "pgqueuer: scope.cancel_called"
CHECKS = 20_000


@dataclass
class Cancelling(Named):
    """Cancels jobs."""

    queries: Queries
    task: str

    async def start(self, key: str) -> Any:
        """Send a job."""
        return (await self.queries.enqueue(self.task, key.encode()))[0]

    async def abort(self, handle: Any) -> None:
        """Ask it to stop."""
        await self.queries.mark_job_as_cancelled([handle])


@asynccontextmanager
async def working(place: Place, board: Board) -> AsyncGenerator[Queries]:
    """Run a worker, on a database of its own."""
    with place.database() as dsn:
        connection = await asyncpg.connect(dsn)
        try:
            queries = Queries.from_asyncpg_connection(connection)
            await queries.install()
            async with program(place.folder, "-m", __name__, dsn) as process:
                key = uuid4().hex
                await queries.enqueue("ready", key.encode())
                await until_marked(process, board, key)
                yield queries
        finally:
            await connection.close()


@asynccontextmanager
async def stoppers(place: Place, board: Board) -> AsyncGenerator[list[Stopper]]:
    """Run a worker."""
    async with working(place, board) as queries:
        yield [Cancelling(NAME, "asyncio", "coroutine", queries, "coroutine")]


async def work(dsn: str) -> None:
    """Be the worker."""
    worker = PgQueuer.from_asyncpg_connection(await asyncpg.connect(dsn))

    @worker.entrypoint("ready")
    async def ready(job: Job) -> None:
        mark((job.payload or b"").decode(), "ready")

    @worker.entrypoint("coroutine", accepts_context=True)
    async def coroutine(job: Job, context: Any) -> None:
        key = (job.payload or b"").decode()
        with context.cancellation:
            await bodies.until_cancelled(key)

    @worker.entrypoint("check", accepts_context=True)
    async def check(job: Job, context: Any) -> None:
        names = {"scope": context.cancellation}
        look = timeit.Timer("scope.cancel_called", globals=names)
        times = [look.timeit(CHECKS) / CHECKS for _ in range(bodies.TURNS)]
        mark((job.payload or b"").decode(), "checked", json.dumps(times))

    await worker.run(dequeue_timeout=timedelta(seconds=1))


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:]))
