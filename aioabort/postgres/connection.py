"""Connections to PostgreSQL: how they are opened, used and closed."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from importlib import import_module
from typing import Any, Final, Protocol, TypeAlias

import asyncpg
from anyio import CancelScope

from aioabort.dsn import Dsn
from aioabort.exceptions import StoreBusy, StoreError
from aioabort.postgres.errors import driver_errors
from aioabort.postgres.turns import Turns
from aioabort.timing import Timing

# anyio and asyncio import these when a thread connects for the first time. A child that
# is forked during such an import inherits a held import lock, and would wait for ever
# when it connects itself.
for _name in ("anyio._backends._asyncio", "encodings.idna"):
    with suppress(ImportError):
        import_module(_name)

PING: Final = "SELECT 1"

NO_IDLE_TIMEOUT: Final = "SET idle_session_timeout = 0"

#: Without it, a row that another transaction has locked would keep the connection from
#: all other tasks. The statement is repeated afterwards.
SHORT_LOCK_WAITS: Final = "SET lock_timeout = '50ms'"

_SERVER_PID: Final = "SELECT pg_backend_pid()"

#: The errors for a database or a role that does not exist, and for a wrong password.
_WRONG_DSN: Final = (
    asyncpg.InvalidCatalogNameError,
    asyncpg.InvalidAuthorizationSpecificationError,
)

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class Executor(Protocol):
    """Runs statements on one connection, or on a pool of connections."""

    async def fetch(
        self, query: str, *args: Any, timeout: float | None = None
    ) -> list[asyncpg.Record]:
        """Run *query* and return its rows.

        Raises StoreBusy if it takes longer than *timeout* seconds, which default to
        ``timing.statement_timeout``, and asyncpg's errors otherwise.
        """
        ...

    async def execute(self, query: str, *args: Any) -> str:
        """Run *query*; several statements without arguments are one transaction."""
        ...


class SerialConnection:
    """One connection that many coroutines share: it runs one statement at a time."""

    def __init__(
        self, connection: "Connection", dsn: Dsn, timing: Timing, *, is_pooled: bool
    ) -> None:
        self.asyncpg_connection = connection
        self.dsn = dsn
        self.timing = timing
        #: Whether a pooler is in front of PostgreSQL. It may drop notifications.
        self.is_pooled = is_pooled
        self._turns = Turns()

    async def fetch(
        self,
        query: str,
        *args: Any,
        timeout: float | None = None,
        is_urgent: bool = False,
    ) -> list[asyncpg.Record]:
        """Run *query* after the statements before it, and return its rows.

        An urgent query is the next one.
        """
        # Not a context manager: each store of a result waits for this.
        await self._turns.acquire(is_urgent=is_urgent)
        try:
            return await fetch_in_time(
                self.asyncpg_connection, self.timing, query, *args, timeout=timeout
            )
        finally:
            self._turns.release()

    async def execute(self, query: str, *args: Any) -> str:
        """Run *query* after the statements before it."""
        async with self._turn():
            return await self.asyncpg_connection.execute(query, *args)

    async def limit_lock_waits(self) -> None:
        """Have no statement wait for a lock for long: others want the connection.

        Behind a pooler this does nothing: the setting would reach other programs.
        """
        if not self.is_pooled:
            with driver_errors():
                await self.execute(SHORT_LOCK_WAITS)

    async def listen(self, channel: str, callback: Callable[..., None]) -> None:
        """Call *callback* with each notification on *channel*.

        A second call with the same arguments changes nothing.
        """
        async with self._turn():
            await self.asyncpg_connection.add_listener(channel, callback)

    async def unlisten(self, channel: str, callback: Callable[..., None]) -> None:
        """Stop calling *callback*."""
        async with self._turn():
            await self.asyncpg_connection.remove_listener(channel, callback)

    @asynccontextmanager
    async def _turn(self) -> AsyncGenerator[None]:
        await self._turns.acquire(is_urgent=False)
        try:
            yield
        finally:
            self._turns.release()


class UrgentExecutor:
    """Runs each statement as the next one of a shared connection."""

    def __init__(self, connection: SerialConnection) -> None:
        self._connection = connection

    async def fetch(
        self, query: str, *args: Any, timeout: float | None = None
    ) -> list[asyncpg.Record]:
        """Run *query* and return its rows."""
        return await self._connection.fetch(
            query, *args, timeout=timeout, is_urgent=True
        )

    async def execute(self, query: str, *args: Any) -> str:
        """Run *query*, but not before the statements that wait already."""
        return await self._connection.execute(query, *args)


async def fetch_in_time(
    connection: Any, timing: Timing, query: str, *args: Any, timeout: float | None
) -> list[asyncpg.Record]:
    """Run *query* on a connection of asyncpg, and return its rows.

    Raises StoreBusy if it takes too long, but the server answers.
    """
    seconds = timing.statement_timeout if timeout is None else timeout
    try:
        rows: list[asyncpg.Record] = await connection.fetch(
            query, *args, timeout=seconds
        )
    except TimeoutError as error:
        # asyncpg has asked the server to cancel the statement. A server that is there
        # does so, and then runs the next one; from a silent one, this times out, too.
        async with asyncio.timeout(timing.heartbeat_timeout):
            await connection.fetch(PING)
        raise StoreBusy(
            f"PostgreSQL is busy: a statement took more than {seconds:g} s"
        ) from error
    return rows


@asynccontextmanager
async def connect(dsn: Dsn, timing: Timing) -> AsyncGenerator[SerialConnection]:
    """Open a connection and close it at the end of the block.

    Raises StoreUnavailable if PostgreSQL cannot be reached, and StoreError if it
    refuses.
    """
    with driver_errors():
        # A connection that listens is idle on purpose.
        connection, is_pooled = await new_connection(dsn, timing, NO_IDLE_TIMEOUT)
    try:
        yield SerialConnection(connection, dsn, timing, is_pooled=is_pooled)
    finally:
        await _close(connection, timing)


async def new_connection(
    dsn: Dsn, timing: Timing, setting: str
) -> tuple["Connection", bool]:
    """Return a connection, and whether a pooler is in front of PostgreSQL.

    The statement *setting* is run if there is none: a pooler would keep the setting for
    the sessions of other programs.

    Behind a pooler, the connection keeps no prepared statements: the next statement may
    run on another server connection, which does not know them.

    Raises StoreError, with the setting that *dsn* comes from, if the database or the
    role does not exist or the password is wrong; and asyncpg's errors otherwise.
    """
    try:
        connection = await _connect(dsn, timing)
    except _WRONG_DSN as error:
        raise StoreError(
            f"PostgreSQL refused: {error} (from {dsn.setting}: {dsn})"
        ) from error
    try:
        is_pooled = await _is_pooled(connection)
        if not is_pooled:
            await connection.execute(setting)
    except BaseException:
        await _close(connection, timing)
        raise
    if not is_pooled or dsn.statement_cache_size is not None:
        return connection, is_pooled
    await _close(connection, timing)
    return await new_connection(replace(dsn, statement_cache_size=0), timing, setting)


async def _connect(dsn: Dsn, timing: Timing) -> "Connection":
    # If connecting is cancelled while asyncpg asks for TLS, asyncpg leaves a future with
    # an error that no code retrieves, and the event loop logs it. So asyncpg runs in a
    # task of its own, which may finish after our cancellation.
    connecting: asyncio.Task[Connection] = asyncio.create_task(
        asyncpg.connect(**_arguments(dsn, timing))
    )
    try:
        await asyncio.wait([connecting])
    except asyncio.CancelledError:
        with CancelScope(shield=True):
            await asyncio.wait([connecting], timeout=timing.close_timeout)
            connecting.cancel()
            await asyncio.wait([connecting])
            if not (connecting.cancelled() or connecting.exception()):
                await _close(connecting.result(), timing)
        raise
    return connecting.result()


async def _is_pooled(connection: "Connection") -> bool:
    # A pooler invents a pid for the client, which is not the pid of the server process.
    pid = bytearray()

    async def read(data: bytes) -> None:
        pid.extend(data)

    # COPY needs no prepared statement, which a pooler may lose.
    await connection.copy_from_query(_SERVER_PID, output=read)
    return int(pid) != connection.get_server_pid()


async def _close(connection: "Connection", timing: Timing) -> None:
    # The surrounding scope may be cancelled already. A connection that is not closed
    # would keep its server process until PostgreSQL notices.
    with CancelScope(shield=True):
        try:
            await connection.close(timeout=timing.close_timeout)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection.terminate()


def _arguments(dsn: Dsn, timing: Timing) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "dsn": dsn.url,
        "timeout": dsn.connect_timeout or timing.connect_timeout,
        "command_timeout": timing.statement_timeout,
    }
    if "application_name=" not in dsn.url:
        arguments["server_settings"] = {"application_name": "aioabort"}
    if dsn.statement_cache_size is not None:
        arguments["statement_cache_size"] = dsn.statement_cache_size
    has_choice = (
        "target_session_attrs=" in dsn.url or "PGTARGETSESSIONATTRS" in os.environ
    )
    if dsn.has_several_hosts and not has_choice:
        # A standby accepts neither an abort request nor LISTEN.
        arguments["target_session_attrs"] = "read-write"
    return arguments
