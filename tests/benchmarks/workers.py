"""Workers, in processes of their own."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from celery import Celery

from .marks import Board
from .place import Place, backend_url
from .project import READY, VARIABLE, make_project

LOG_TAIL = 2_000
STOP_TIMEOUT = 5.0


@dataclass(frozen=True)
class Worker:
    """A worker of Celery that runs, and its app as a producer has it."""

    app: Celery
    pool: str
    pid: int


@asynccontextmanager
async def celery_worker(
    place: Place, board: Board, dsn: str, pool: str, concurrency: int, **settings: Any
) -> AsyncGenerator[Worker]:
    """Run one for the time of the block, with results in Celery's own backend."""
    settings = {
        "result_backend": backend_url(dsn),
        **place.broker,
        "task_default_queue": f"aioabort-bench-{uuid4().hex[:8]}",
        **settings,
    }
    variables = {VARIABLE: json.dumps(settings)}
    app = make_project(settings)
    arguments = [
        *("-m", "celery", "-q", "-A", "tests.benchmarks.project", "worker"),
        *("-P", pool, "-c", str(concurrency), "-l", "WARNING"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        *("-n", settings["task_default_queue"]),
    ]
    key = uuid4().hex
    async with program(place.folder, *arguments, **variables) as process:
        # Only a task that was run tells for sure.
        app.send_task(READY, (key,))
        await until_marked(process, board, key)
        try:
            yield Worker(app, pool, process.pid)
        finally:
            with suppress(Exception), app.connection_for_write() as connection:
                channel: Any = connection.default_channel
                channel.queue_delete(app.conf.task_default_queue)
            app.close()


async def until_marked(process: "Program", board: Board, key: str) -> None:
    """Return when the process is ready, as a task with *key* reports."""
    ready = asyncio.create_task(board.marked(key, "ready"))
    died = asyncio.create_task(process.process.wait())
    await asyncio.wait((ready, died), return_when=asyncio.FIRST_COMPLETED)
    died.cancel()
    if not ready.done() or ready.exception() is not None:
        ready.cancel()
        raise RuntimeError(f"A worker did not start:\n{process.log_tail()}")


@dataclass(frozen=True)
class Program:
    """A Python process that runs, and its log."""

    process: asyncio.subprocess.Process
    log: Path

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def log_tail(self) -> str:
        """Return how its log ends."""
        return self.log.read_text(errors="replace")[-LOG_TAIL:]


@asynccontextmanager
async def program(
    folder: Path, *arguments: str, **variables: str
) -> AsyncGenerator[Program]:
    """Run Python with *arguments* for the time of the block."""
    log = folder / f"{uuid4().hex}.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *arguments),
            env={**os.environ, "C_FORCE_ROOT": "1", **variables},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # With its children it is a group of its own, and ended as one.
            start_new_session=True,
        )
    try:
        yield Program(process, log)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
