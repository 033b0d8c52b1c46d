"""A pool of connections: one of our own, or a pool of the user's."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, cast

import asyncpg
from anyio import CancelScope, move_on_after

from aioabort.dsn import Dsn
from aioabort.exceptions import (
    ClientClosed,
    StoreBusy,
    StoreError,
    StoreUnavailable,
    WrongLoop,
)
from aioabort.postgres.codecs import refuse_foreign_codecs
from aioabort.postgres.connection import (
    PING,
    SHORT_LOCK_WAITS,
    Connection,
    fetch_in_time,
    new_connection,
)
from aioabort.postgres.errors import driver_errors
from aioabort.timing import Timing

AnyPool: TypeAlias = "asyncpg.Pool[Any]"
PoolConnection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[Any]"


class Pool:
    """Runs each statement on a free connection of the pool."""

    def __init__(self, pool: "AnyPool", timing: Timing, *, is_borrowed: bool) -> None:
        self._pool = pool
        self._timing = timing
        self._is_borrowed = is_borrowed
        # A pool of the user's may reset each connection with a statement.
        self._release_timeout = (
            timing.statement_timeout if is_borrowed else timing.close_timeout
        )

    async def fetch(
        self, query: str, *args: Any, timeout: float | None = None
    ) -> list[asyncpg.Record]:
        """Run *query* and return its rows."""
        async with self._connection() as connection:
            return await fetch_in_time(
                connection, self._timing, query, *args, timeout=timeout
            )

    async def execute(self, query: str, *args: Any) -> str:
        """Run *query*; several statements without arguments are one transaction."""
        async with self._connection() as connection:
            return await connection.execute(
                query, *args, timeout=self._timing.statement_timeout
            )

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator["PoolConnection"]:
        if self._pool.is_closing():
            # Not StoreUnavailable: a closed pool cannot be opened again.
            raise StoreError("The pool that was passed to the client is closed")
        timeout = self._timing.acquire_timeout
        try:
            # Not acquire(timeout=...), which starts a task for each call.
            async with asyncio.timeout(timeout):
                connection = await self._pool.acquire()
        except TimeoutError as error:
            raise StoreBusy(
                "PostgreSQL is busy: no connection of the pool became free within "
                f"{timeout:g} s"
            ) from error
        try:
            yield connection
        except asyncpg.ReadOnlySQLTransactionError:
            # The primary has become a standby: new connections find the new primary.
            if not self._is_borrowed:
                await self._pool.expire_connections()
            raise
        finally:
            await self._pool.release(connection, timeout=self._release_timeout)


@asynccontextmanager
async def open_pool(dsn: Dsn, max_size: int, timing: Timing) -> AsyncGenerator[Pool]:
    """Open a pool, check that it can connect, and close it at the end of the block.

    Raises StoreUnavailable if PostgreSQL cannot be reached, and StoreError if it
    refuses.
    """

    async def connect(*_: object, **__: object) -> Connection:
        # Otherwise a few aborts of one locked row would take all connections.
        return (await new_connection(dsn, timing, SHORT_LOCK_WAITS))[0]

    asyncpg_pool = await asyncpg.create_pool(
        min_size=0, max_size=max_size, connect=connect, reset=_skip_reset
    )
    pool = Pool(asyncpg_pool, timing, is_borrowed=False)
    try:
        with driver_errors():
            await pool.fetch(PING)
        yield pool
    finally:
        with CancelScope(shield=True), move_on_after(timing.close_timeout):
            await asyncpg_pool.close()
        asyncpg_pool.terminate()


@asynccontextmanager
async def borrow_pool(pool: "AnyPool", timing: Timing) -> AsyncGenerator[Pool]:
    """Check that the user's *pool* works for aioabort, and use it in the block.

    Raises ClientClosed if the pool is closed, WrongLoop if it belongs to another event
    loop, and otherwise what ``open_pool()`` raises.
    """
    if pool.is_closing():
        raise ClientClosed("The pool that was passed to the client is closed")
    # asyncpg has no public name for a pool's loop. Without this check, asyncpg would
    # raise an error that does not say what is wrong.
    if cast("Any", pool)._loop is not asyncio.get_running_loop():
        raise WrongLoop(
            "The pool that was passed to the client belongs to another event loop: "
            "create it on the loop that uses the client"
        )
    borrowed = Pool(pool, timing, is_borrowed=True)
    try:
        with driver_errors():
            await borrowed.fetch(PING)
    except StoreUnavailable as error:
        if isinstance(error.__cause__, asyncpg.InterfaceError):
            problem = f"The pool that was passed to the client cannot be used: {error}"
            raise StoreError(problem) from error
        raise
    await refuse_foreign_codecs(borrowed)
    yield borrowed


def check_pool(pool: object) -> None:
    """Raise TypeError unless *pool* is an asyncpg pool."""
    if not isinstance(pool, asyncpg.Pool):
        raise TypeError(f"pool must be an asyncpg.Pool, not {type(pool).__name__}")


async def _skip_reset(_connection: object) -> None:
    # Our statements change nothing in the session. A reset would cost one round trip
    # for each statement.
    pass
