"""A Celery worker in its own processes."""

import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, STDOUT
from typing import Any, NoReturn

import anyio
from anyio.abc import Process

from aioabort.demo import DemoError
from aioabort.demo.celery_app import SETTINGS_VARIABLE

START_TIMEOUT = 60.0

LOG_TAIL = 1_500


@dataclass(frozen=True)
class WorkerProcess:
    """The main process of a running worker."""

    pid: int

    @contextmanager
    def paused(self) -> Generator[None]:
        """Suspend it, so that it fetches no tasks during the block."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)


@asynccontextmanager
async def running_worker(
    settings: dict[str, Any],
    folder: Path,
    pool: str,
    concurrency: int,
    shutdown_timeout: float,
) -> AsyncGenerator[WorkerProcess]:
    """Run a worker for the duration of the block; kill it *shutdown_timeout* s later.

    Raises DemoError, with the end of the worker's log, if it does not start or dies.
    """
    log, ready = folder / "worker.log", folder / "ready"
    ready.unlink(missing_ok=True)
    process = await _start(
        {**settings, "demo_ready": str(ready)}, log, pool, concurrency
    )
    try:
        await _wait_until_ready(process, ready, log)
        async with anyio.create_task_group() as group:
            group.start_soon(_watch, process, log)
            yield WorkerProcess(process.pid)
            group.cancel_scope.cancel()
    finally:
        # Without the shield, a cancellation would leave the worker running.
        with anyio.CancelScope(shield=True):
            await _stop(process, shutdown_timeout)


async def _start(
    settings: dict[str, Any], log: Path, pool: str, concurrency: int
) -> Process:
    environment = {
        **os.environ,
        SETTINGS_VARIABLE: json.dumps(settings),
        "C_FORCE_ROOT": "1",
        "PYTHONWARNINGS": "ignore",
        # Kombu moves each message through this directory.
        "TMPDIR": str(log.parent),
    }
    options = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    with log.open("ab") as file:
        return await anyio.open_process(
            [
                *(
                    sys.executable,
                    "-m",
                    "celery",
                    "-q",
                    "-A",
                    "aioabort.demo.celery_app",
                ),
                *("worker", "-P", pool, "-c", str(concurrency), "-l", "WARNING"),
                *options,
            ],
            env=environment,
            stdin=DEVNULL,
            stdout=file,
            stderr=STDOUT,
            # Ctrl-C in the terminal must reach only the demo, not the worker.
            start_new_session=True,
        )


async def _wait_until_ready(process: Process, ready: Path, log: Path) -> None:
    with anyio.move_on_after(START_TIMEOUT):
        while not await anyio.Path(ready).exists():
            if process.returncode is not None:
                break
            await anyio.sleep(0.05)
        else:
            return
    _raise_with_log("did not start", log)


async def _watch(process: Process, log: Path) -> None:
    await process.wait()
    _raise_with_log("died", log)


def _raise_with_log(what: str, log: Path) -> NoReturn:
    tail = log.read_text(errors="replace")[-LOG_TAIL:].strip() or "(empty)"
    raise DemoError(f"The worker {what}; its log ends with:\n{tail}")


async def _stop(process: Process, shutdown_timeout: float) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    with anyio.move_on_after(shutdown_timeout):
        await process.wait()
    # Kill the rest of its session: prefork children, if it did not stop in time.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
    await process.aclose()
