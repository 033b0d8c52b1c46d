"""The limit: one commit and one notification, between bare asyncpg connections."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

from ..completer import LIMIT_CHANNEL
from ..marks import Board, mark
from ..place import Place
from .stoppers import Named, Stopper

NAME = "limit: a notification each, bare asyncpg"


@asynccontextmanager
async def waiting(
    dsn: str, _waiters: int
) -> AsyncGenerator[Callable[[str], Awaitable[Any]]]:
    """Wait for the notification, and for nothing else: what is lost is lost."""
    futures: dict[str, asyncio.Future[None]] = {}
    loop = asyncio.get_running_loop()

    def hear(_connection: Any, _pid: int, _channel: str, payload: str) -> None:
        if future := futures.pop(payload, None):
            future.set_result(None)

    async def wait(task_id: str) -> None:
        futures[task_id] = future = loop.create_future()
        try:
            await future
        finally:
            futures.pop(task_id, None)

    connection = await asyncpg.connect(dsn)
    try:
        await connection.add_listener(LIMIT_CHANNEL, hear)
        yield wait
    finally:
        await connection.close()


STOP = "limit: a commit and a notification"
COMMIT = "limit: one INSERT, bare asyncpg"

REQUEST = """
    -- $1 task id
    INSERT INTO aioabort_request (task_id, expires_at) VALUES ($1, now())
"""


@dataclass
class Telling(Named):
    """Commits a row on one connection, notifies, and hears of it on another."""

    mouth: "asyncpg.Connection[Any]"

    async def start(self, key: str) -> str:
        """Run nothing."""
        mark(key, "started")
        return key

    async def abort(self, handle: str) -> None:
        """Commit, then notify."""
        await self.mouth.execute(REQUEST, handle)
        await self.mouth.execute("SELECT pg_notify($1, $2)", LIMIT_CHANNEL, handle)


@asynccontextmanager
async def stoppers(
    _place: Place, _board: Board, dsn: str, _pool: str
) -> AsyncGenerator[list[Stopper]]:
    """Open the two connections."""

    def hear(_connection: Any, _pid: int, _channel: str, payload: str) -> None:
        mark(payload, "stopped")

    ear, mouth = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    try:
        await ear.add_listener(LIMIT_CHANNEL, hear)
        yield [Telling(STOP, "none", "none", mouth)]
    finally:
        await ear.close()
        await mouth.close()
