"""Connections: how one is opened and closed, and statements one at a time on it."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any, Protocol, TypeAlias

import asyncpg
from anyio import CancelScope

from aioabort.dsn import Dsn
from aioabort.postgres.errors import driver_errors
from aioabort.postgres.statements import SERVER_PID

# Others import these when a thread first connects, the second in a thread of its loop. A
# child that is forked in the middle of that waits for ever when it connects itself.
for _name in ("anyio._backends._asyncio", "encodings.idna"):
    import_module(_name)

CONNECT_TIMEOUT = 10.0

#: A server that is frozen must not hold a statement, and its caller, for ever.
STATEMENT_TIMEOUT = 10.0

CLOSE_TIMEOUT = 1.0

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


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

    def __init__(self, connection: "Connection", *, is_pooled: bool) -> None:
        self.connection = connection
        #: A pooler stands before the server: LISTEN may be in vain.
        self.is_pooled = is_pooled
        self._turn = asyncio.Lock()

    async def fetch(
        self, query: str, *args: Any, timeout: float | None = None
    ) -> list[asyncpg.Record]:
        """Run *query* when the statements before it are done, and return its rows."""
        async with self._turn:
            return await self.connection.fetch(query, *args, timeout=timeout)

    async def execute(self, query: str, *args: Any) -> str:
        """Run *query* when the statements before it are done."""
        async with self._turn:
            return await self.connection.execute(query, *args)

    async def listen(self, channel: str, callback: Callable[..., None]) -> None:
        """Have *callback* called with what comes; once, also if this is called twice."""
        async with self._turn:
            await self.connection.add_listener(channel, callback)

    async def unlisten(self, channel: str, callback: Callable[..., None]) -> None:
        """Have *callback* called no more."""
        async with self._turn:
            await self.connection.remove_listener(channel, callback)


@asynccontextmanager
async def connect(dsn: Dsn) -> AsyncGenerator[Link]:
    """Open a connection for the time of the block.

    Raises StoreUnavailable when the server cannot be reached, and StoreError when it
    refuses.
    """
    with driver_errors():
        connection, is_pooled = await new_connection(dsn)
    try:
        yield Link(connection, is_pooled=is_pooled)
    finally:
        await _close(connection)


async def new_connection(dsn: Dsn) -> tuple["Connection", bool]:
    """Return a connection, and whether a pooler stands before the server.

    Prepared statements are kept only where none does: behind it, the next statement may
    meet another server connection, which knows nothing of them.
    """
    connection = await _connected(dsn)
    try:
        is_pooled = await _is_pooled(connection)
    except BaseException:
        await _close(connection)
        raise
    if not is_pooled or dsn.statement_cache_size is not None:
        return connection, is_pooled
    await _close(connection)
    return await new_connection(replace(dsn, statement_cache_size=0))


async def _connected(dsn: Dsn) -> "Connection":
    """Connect; if that is cancelled, let it come to its end.

    While it asks for TLS, asyncpg would leave an error behind that nobody retrieves, and
    the event loop logs that.
    """
    connecting: asyncio.Task[Connection] = asyncio.create_task(
        asyncpg.connect(**_arguments(dsn))
    )
    try:
        await asyncio.wait([connecting])
    except asyncio.CancelledError:
        with CancelScope(shield=True):
            await asyncio.wait([connecting], timeout=CLOSE_TIMEOUT)
            connecting.cancel()
            await asyncio.wait([connecting])
            if not (connecting.cancelled() or connecting.exception()):
                await _close(connecting.result())
        raise
    return connecting.result()


async def _is_pooled(connection: "Connection") -> bool:
    """Whether the server's pid is not the one that answered the connection.

    A pooler answers with a pid of its own making.
    """
    pid = bytearray()

    async def read(data: bytes) -> None:
        pid.extend(data)

    # By COPY, which needs no prepared statement: those are what a pooler may lose.
    await connection.copy_from_query(SERVER_PID, output=read)
    return int(pid) != connection.get_server_pid()


async def _close(connection: "Connection") -> None:
    # The scope around us may be cancelled already, and a connection that is not closed
    # keeps its backend until the server finds out.
    with CancelScope(shield=True):
        try:
            await connection.close(timeout=CLOSE_TIMEOUT)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection.terminate()


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
    is_chosen = (
        "target_session_attrs=" in dsn.url or "PGTARGETSESSIONATTRS" in os.environ
    )
    if dsn.has_several_hosts and not is_chosen:
        # A standby takes neither a request nor a LISTEN.
        arguments["target_session_attrs"] = "read-write"
    return arguments
