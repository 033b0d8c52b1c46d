"""Connections: how one is opened and closed, and statements one at a time on it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import asyncpg
from anyio import CancelScope, move_on_after

from aioabort.dsn import Dsn
from aioabort.postgres.errors import driver_errors
from aioabort.postgres.statements import PING

CONNECT_TIMEOUT = 10.0

#: A server that is frozen must not hold a statement, and its caller, for ever.
STATEMENT_TIMEOUT = 10.0

CLOSE_TIMEOUT = 1.0


class Executor(Protocol):
    """What runs statements: one connection, or a pool of them."""

    async def fetch(self, query: str, *args: Any) -> list[asyncpg.Record]:
        """Run *query* and return its rows."""
        ...

    async def execute(self, query: str, *args: Any) -> str:
        """Run *query*; several statements without arguments are one transaction."""
        ...


class Link:
    """One connection; statements queue up for it instead of colliding."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self.connection = connection
        self._turn = asyncio.Lock()

    async def fetch(self, query: str, *args: Any) -> list[asyncpg.Record]:
        """Run *query* when the statements before it are done, and return its rows."""
        async with self._turn:
            return await self.connection.fetch(query, *args)

    async def execute(self, query: str, *args: Any) -> str:
        """Run *query* when the statements before it are done."""
        async with self._turn:
            return await self.connection.execute(query, *args)


@asynccontextmanager
async def connect(dsn: Dsn) -> AsyncGenerator[Link]:
    """Open a connection for the time of the block.

    Raises StoreUnavailable when the server cannot be reached, and StoreError when it
    refuses.
    """
    with driver_errors():
        connection = await asyncpg.connect(**_arguments(dsn))
    try:
        yield Link(connection)
    finally:
        # The scope around us may be cancelled already, and a connection that is not
        # closed keeps its backend until the server finds out.
        with CancelScope(shield=True):
            try:
                await connection.close(timeout=CLOSE_TIMEOUT)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection.terminate()


@asynccontextmanager
async def open_pool(
    dsn: Dsn, max_size: int
) -> AsyncGenerator["asyncpg.Pool[asyncpg.Record]"]:
    """Open a pool for the time of the block, and make sure that it connects.

    Raises StoreUnavailable when the server cannot be reached, and StoreError when it
    refuses.
    """
    with driver_errors():
        pool = await asyncpg.create_pool(
            min_size=0, max_size=max_size, **_arguments(dsn)
        )
    try:
        with driver_errors():
            await pool.fetch(PING)
        yield pool
    finally:
        with CancelScope(shield=True), move_on_after(CLOSE_TIMEOUT):
            await pool.close()
        pool.terminate()


def _arguments(dsn: Dsn) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "dsn": dsn.url,
        "timeout": dsn.connect_timeout or CONNECT_TIMEOUT,
        "command_timeout": STATEMENT_TIMEOUT,
    }
    if "application_name=" not in dsn.url:
        arguments["server_settings"] = {"application_name": "aioabort"}
    if dsn.statement_cache_size is not None:
        arguments["statement_cache_size"] = dsn.statement_cache_size
    return arguments
