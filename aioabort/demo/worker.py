"""A real worker, in processes of its own."""

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

from aioabort.demo.errors import DemoError
from aioabort.demo.project import VARIABLE

START_TIMEOUT = 60.0

LOG_TAIL = 1_500


@dataclass(frozen=True)
class Worker:
    """A worker that runs."""

    pid: int

    @contextmanager
    def held(self) -> Generator[None]:
        """Have it fetch nothing for the time of the block."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)


@asynccontextmanager
async def running_worker(
    settings: dict[str, Any], folder: Path, pool: str, concurrency: int, patience: float
) -> AsyncGenerator[Worker]:
    """Run a worker for the time of the block, and *patience* seconds to shut down.

    Raises DemoError, with the end of its log, when it does not start or dies.
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
            yield Worker(process.pid)
            group.cancel_scope.cancel()
    finally:
        # We may be cancelled already, and the worker would go on for ever.
        with anyio.CancelScope(shield=True):
            await _stop(process, patience)


async def _start(
    settings: dict[str, Any], log: Path, pool: str, concurrency: int
) -> Process:
    environment = {
        **os.environ,
        VARIABLE: json.dumps(settings),
        "C_FORCE_ROOT": "1",
        "PYTHONWARNINGS": "ignore",
        # Kombu moves each message through it.
        "TMPDIR": str(log.parent),
    }
    options = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    with log.open("ab") as file:
        return await anyio.open_process(
            [
                *(sys.executable, "-m", "celery", "-q", "-A", "aioabort.demo.project"),
                *("worker", "-P", pool, "-c", str(concurrency), "-l", "WARNING"),
                *options,
            ],
            env=environment,
            stdin=DEVNULL,
            stdout=file,
            stderr=STDOUT,
            # The Ctrl-C of our terminal is for us, not for the worker.
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


async def _stop(process: Process, patience: float) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    with anyio.move_on_after(patience):
        await process.wait()
    # What is left of its session: prefork children, if it did not stop by itself.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
    await process.aclose()
