"""LISTEN on a connection of its own, and knowing when that connection is lost."""

import asyncio
from collections.abc import Callable
from typing import Any, Never

from anyio import move_on_after

from aioabort.exceptions import StoreUnavailable
from aioabort.postgres import statements
from aioabort.postgres.connection import Link
from aioabort.postgres.errors import driver_errors
from aioabort.postgres.hints import decode_hint

HEARTBEAT = 10.0

#: Gets the ids to look at, or None for "look at everything". Called by the driver
#: between two reads of the socket: it must return at once, and never raise.
OnHint = Callable[[list[str] | None], None]


async def listen(link: Link, channel: str, on_hint: OnHint) -> str | None:
    """Start to listen; return why no notification will come, or None if they will."""
    with driver_errors():
        [row] = await link.fetch(statements.SERVER_PID)
        # A pooler answers the connection with a pid of its own making, and lends a
        # different server connection to each transaction: LISTEN succeeds in vain.
        if row[0] != link.connection.get_server_pid():
            return "a connection pooler stands before PostgreSQL"

        def deliver(_connection: Any, _pid: int, _channel: str, payload: Any) -> None:
            on_hint(decode_hint(payload))

        await link.connection.add_listener(channel, deliver)
    return None


async def until_lost(link: Link, heartbeat: float | None = None) -> Never:
    """Raise StoreUnavailable when the connection is lost.

    A server that goes silent without closing is noticed by a statement that times
    out: every *heartbeat* seconds, or the caller's own statements if None.
    """
    lost = asyncio.Event()
    link.connection.add_termination_listener(lambda _connection: lost.set())
    while not link.connection.is_closed():
        with move_on_after(heartbeat):
            await lost.wait()
            break
        with driver_errors():
            await link.fetch(statements.PING)
    raise StoreUnavailable("PostgreSQL is away: the connection was closed")
