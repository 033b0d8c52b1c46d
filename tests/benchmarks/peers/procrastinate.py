"""procrastinate, on its psycopg connector: notified, with its default poll behind."""

import asyncio
import json
import sys
import timeit
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

from procrastinate import App, JobContext, PsycopgConnector

from .. import bodies
from ..marks import Board, mark
from ..place import Place
from ..workers import program, until_marked
from .stoppers import Named, Stopper

NAME = "procrastinate"
CHECK = "procrastinate: context.should_abort()"
CHECKS = 20_000


def make_app(dsn: str) -> App:
    """Return an app with its tasks, on the database of *dsn*."""
    app = App(connector=PsycopgConnector(conninfo=dsn))

    @app.task(name="ready")
    async def ready(key: str) -> None:
        mark(key, "ready")

    @app.task(name="coroutine")
    async def coroutine(key: str) -> None:
        await bodies.until_cancelled(key)

    @app.task(name="loop", pass_context=True)
    def loop(context: JobContext, key: str) -> None:
        bodies.loop(key, context.should_abort)

    @app.task(name="check", pass_context=True)
    def check(context: JobContext, key: str) -> None:
        look = timeit.Timer("context.should_abort()", globals={"context": context})
        times = [look.timeit(CHECKS) / CHECKS for _ in range(bodies.TURNS)]
        mark(key, "checked", json.dumps(times))

    return app


@dataclass
class Aborting(Named):
    """Aborts jobs."""

    app: App
    task: str

    async def start(self, key: str) -> int:
        """Send a job."""
        return await self.app.configure_task(self.task).defer_async(key=key)

    async def abort(self, handle: int) -> None:
        """Ask it to stop."""
        await self.app.job_manager.cancel_job_by_id_async(handle, abort=True)


@asynccontextmanager
async def working(place: Place, board: Board) -> AsyncGenerator[App]:
    """Run a worker, on a database of its own."""
    with place.database() as dsn:
        app = make_app(dsn)
        async with app.open_async():
            await app.schema_manager.apply_schema_async()
            async with program(place.folder, "-m", __name__, dsn) as process:
                key = uuid4().hex
                await app.configure_task("ready").defer_async(key=key)
                await until_marked(process, board, key)
                yield app


@asynccontextmanager
async def stoppers(place: Place, board: Board) -> AsyncGenerator[list[Stopper]]:
    """Run a worker."""
    async with working(place, board) as app:
        yield [
            Aborting(NAME, "asyncio", "coroutine", app, "coroutine"),
            Aborting(NAME, "asyncio", "checks in a loop", app, "loop"),
        ]


async def work(dsn: str) -> None:
    """Be the worker."""
    app = make_app(dsn)
    async with app.open_async():
        await app.run_worker_async(concurrency=2)


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:]))
