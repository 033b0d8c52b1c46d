"""LISTEN on a connection of its own, and knowing when that connection is lost."""

import asyncio
import secrets
from collections.abc import Callable
from typing import Any, Never

from anyio import fail_after, move_on_after, sleep, sleep_forever

from aioabort.dsn import Dsn
from aioabort.exceptions import StoreUnavailable
from aioabort.postgres import statements
from aioabort.postgres.connection import Link, connect
from aioabort.postgres.errors import driver_errors
from aioabort.postgres.hints import decode_hint

HEARTBEAT = 10.0
HEARTBEAT_TIMEOUT = 3.0

#: How often it is tried whether a pooler lets notifications through, how long one
#: may take, and how many seconds later it is tried again.
PROBES = 3
PROBE_TIMEOUT = 0.7
PROBE_AGAIN = 300.0

#: Gets the ids to look at, or None for "look at everything". Called by the driver
#: between two reads of the socket: it must return at once, and never raise.
OnHint = Callable[[list[str] | None], None]


async def keep_listening(
    link: Link,
    dsn: Dsn,
    channel: str,
    on_hint: OnHint,
    on_change: Callable[[str | None], None],
) -> Never:
    """Listen on *link*, which is a connection to *dsn*.

    *on_change* gets None when notifications come from now on, and else why they will
    not: a pooler takes LISTEN, and then lends another server connection to whoever
    comes next. It is asked again every five minutes.
    """

    def deliver(_connection: Any, _pid: int, _channel: str, payload: Any) -> None:
        on_hint(decode_hint(payload))

    while True:
        refusal = await _refusal(dsn) if link.is_pooled else None
        if refusal is None:
            with driver_errors():
                await link.listen(channel, deliver)
        on_change(refusal)
        if not link.is_pooled:
            await sleep_forever()
        await sleep(PROBE_AGAIN)


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
        with driver_errors(), fail_after(HEARTBEAT_TIMEOUT):
            await link.fetch(statements.PING)
    raise StoreUnavailable("PostgreSQL is away: the connection was closed")


async def _refusal(dsn: Dsn) -> str | None:
    """Return why the pooler at *dsn* lets no notification through, or None."""
    try:
        is_heard = await _is_heard(dsn)
    except StoreUnavailable as error:
        return f"a pooler could not be asked whether it lets them through: {error}"
    if is_heard:
        return None
    return (
        "a pooler that lends its connections by the transaction lets none through; "
        "aioabort_listen_dsn may name a direct address"
    )


async def _is_heard(dsn: Dsn) -> bool:
    """Whether one connection hears what another one notifies.

    Two connections of their own: what is notified on the connection that listens, or
    while it runs a statement, comes through even if nothing else does.
    """
    channel = f"aioabort_probe_{secrets.token_hex(8)}"
    heard = asyncio.Event()

    def hear(*_: object) -> None:
        heard.set()

    async with connect(dsn) as ear, connect(dsn) as mouth:
        with driver_errors():
            await ear.listen(channel, hear)
            for _ in range(PROBES):
                await mouth.fetch(statements.NOTIFY, channel, ["probe"])
                with move_on_after(PROBE_TIMEOUT):
                    await heard.wait()
                    break
            # Or the server connection would go on listening, for nobody.
            await ear.unlisten(channel, hear)
    return heard.is_set()
