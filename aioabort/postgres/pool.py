"""A pool of connections: one of our own, or one that the user lends us."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, cast

import asyncpg
from anyio import CancelScope, move_on_after

from aioabort.dsn import Dsn
from aioabort.exceptions import ClientClosed, StoreError, StoreUnavailable, WrongLoop
from aioabort.postgres.connection import (
    CLOSE_TIMEOUT,
    STATEMENT_TIMEOUT,
    Connection,
    new_connection,
)
from aioabort.postgres.errors import driver_errors
from aioabort.postgres.statements import PING

#: Seconds until a pool of which all connections are in use counts as out of order.
ACQUIRE_TIMEOUT = 30.0

AnyPool: TypeAlias = "asyncpg.Pool[Any]"
PoolConnection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[Any]"


class Pool:
    """Runs each statement on a connection that is free."""

    def __init__(self, pool: "AnyPool", *, is_lent: bool) -> None:
        self._pool = pool
        self._is_lent = is_lent
        # A pool that is not ours may reset its connections with a statement.
        self._release_timeout = STATEMENT_TIMEOUT if is_lent else CLOSE_TIMEOUT

    async def fetch(self, query: str, *args: Any) -> list[asyncpg.Record]:
        """Run *query* and return its rows."""
        async with self._connection() as connection:
            return await connection.fetch(query, *args, timeout=STATEMENT_TIMEOUT)

    async def execute(self, query: str, *args: Any) -> str:
        """Run *query*; several statements without arguments are one transaction."""
        async with self._connection() as connection:
            return await connection.execute(query, *args, timeout=STATEMENT_TIMEOUT)

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator["PoolConnection"]:
        if self._pool.is_closing():
            # Not StoreUnavailable: a pool does not come back.
            raise StoreError("The pool that the client was given is closed")
        try:
            # Not the pool's own timeout, for which it would start a task each time.
            async with asyncio.timeout(ACQUIRE_TIMEOUT):
                connection = await self._pool.acquire()
        except TimeoutError as error:
            raise StoreUnavailable("no connection was to be had in time") from error
        try:
            yield connection
        except asyncpg.ReadOnlySQLTransactionError:
            # The primary of yesterday: who connects anew finds the one of today.
            if not self._is_lent:
                await self._pool.expire_connections()
            raise
        finally:
            await self._pool.release(connection, timeout=self._release_timeout)


@asynccontextmanager
async def open_pool(dsn: Dsn, max_size: int) -> AsyncGenerator[Pool]:
    """Open a pool for the time of the block, and make sure that it connects.

    Raises StoreUnavailable when the server cannot be reached, and StoreError when it
    refuses.
    """

    async def connect(*_: object, **__: object) -> Connection:
        return (await new_connection(dsn))[0]

    asyncpg_pool = await asyncpg.create_pool(
        min_size=0, max_size=max_size, connect=connect, reset=_leave_as_it_is
    )
    pool = Pool(asyncpg_pool, is_lent=False)
    try:
        with driver_errors():
            await pool.fetch(PING)
        yield pool
    finally:
        with CancelScope(shield=True), move_on_after(CLOSE_TIMEOUT):
            await asyncpg_pool.close()
        asyncpg_pool.terminate()


@asynccontextmanager
async def borrow_pool(pool: "AnyPool") -> AsyncGenerator[Pool]:
    """Use the user's *pool* for the time of the block, and make sure that it works.

    Raises WrongLoop or ClientClosed for a pool that can never work here, and what
    ``open_pool()`` raises.
    """
    if pool.is_closing():
        raise ClientClosed("The pool that the client was given is closed")
    # Of another loop's pool, asyncpg says nothing that helps; nor in public what its
    # loop is.
    if cast("Any", pool)._loop is not asyncio.get_running_loop():
        raise WrongLoop("The pool that the client was given is of another event loop")
    borrowed = Pool(pool, is_lent=True)
    try:
        with driver_errors():
            await borrowed.fetch(PING)
    except StoreUnavailable as error:
        if isinstance(error.__cause__, asyncpg.InterfaceError):
            problem = f"The pool that the client was given cannot be used: {error}"
            raise StoreError(problem) from error
        raise
    yield borrowed


def check_pool(pool: object) -> None:
    """Raise TypeError unless *pool* is a pool of asyncpg's."""
    if not isinstance(pool, asyncpg.Pool):
        raise TypeError(f"pool is an asyncpg.Pool, not {type(pool).__name__}")


async def _leave_as_it_is(_connection: object) -> None:
    """Reset nothing: no statement leaves anything, and that saves a round trip each."""
