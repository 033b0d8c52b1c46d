"""LISTEN on a connection, and detecting that the connection is lost."""

import asyncio
import secrets
from collections.abc import Callable
from time import perf_counter
from typing import Any, Never

from anyio import CancelScope, fail_after, move_on_after, sleep, sleep_forever

from aioabort.exceptions import StoreUnavailable
from aioabort.postgres.connection import PING, SerialConnection, connect
from aioabort.postgres.errors import driver_errors
from aioabort.postgres.notifications import decode_notification
from aioabort.postgres.request_statements import NOTIFY

#: Notifications that a probe sends before it reports that none arrives.
PROBES = 3

#: Gets the task ids to query, or None for all. asyncpg calls it between two reads of
#: the socket: it must return at once, and must not raise.
OnNotification = Callable[[list[str] | None], None]


async def keep_listening(
    connection: SerialConnection,
    channel: str,
    on_notification: OnNotification,
    on_change: Callable[[str | None], None],
) -> Never:
    """Call *on_notification* with each notification on *channel*.

    *on_change* gets None when notifications arrive from now on, and otherwise the
    reason why they do not: a pooler accepts LISTEN, but may give the server connection
    to another client afterwards. Such a pooler is probed again every five minutes.
    """

    def deliver(_connection: Any, _pid: int, _channel: str, payload: Any) -> None:
        on_notification(decode_notification(payload))

    while True:
        refusal = await _refusal(connection) if connection.is_pooled else None
        if refusal is None:
            with driver_errors():
                await connection.listen(channel, deliver)
        on_change(refusal)
        if not connection.is_pooled:
            await sleep_forever()
        await sleep(connection.timing.probe_interval)


async def watch_connection(
    connection: SerialConnection, *, pings: bool = False
) -> Never:
    """Raise StoreUnavailable when *connection* is lost.

    If the server goes silent without closing the connection, a statement times out:
    with *pings* a ping at each heartbeat, otherwise a statement of the caller's.
    """
    timing = connection.timing
    lost = asyncio.Event()
    connection.asyncpg_connection.add_termination_listener(lambda _: lost.set())
    while not connection.asyncpg_connection.is_closed():
        with move_on_after(timing.heartbeat if pings else None):
            await lost.wait()
            break
        with driver_errors(), fail_after(timing.heartbeat_timeout):
            await connection.fetch(PING)
    raise StoreUnavailable("PostgreSQL is away: the connection was closed")


async def measure_lag(
    listener: SerialConnection, notifier: SerialConnection
) -> float | None:
    """Return the seconds that a notification takes, or None if none arrives.

    The two connections must differ. What a connection notifies to itself arrives even
    through a pooler that drops all other notifications, and so does a notification that
    is sent while the listener runs a statement.
    """
    channel = f"aioabort_probe_{secrets.token_hex(8)}"
    sent_at: dict[str, float] = {}
    lag: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def deliver(_connection: Any, _pid: int, _channel: str, payload: str) -> None:
        if not lag.done():
            lag.set_result(perf_counter() - sent_at[payload])

    timing = listener.timing
    with driver_errors():
        await listener.listen(channel, deliver)
        try:
            for number in map(str, range(PROBES)):
                sent_at[number] = perf_counter()
                await notifier.fetch(NOTIFY, channel, [number])
                await asyncio.wait([lag], timeout=timing.probe_timeout)
                if lag.done():
                    return lag.result()
        finally:
            # Otherwise the pooler's server connection would listen for ever.
            with CancelScope(shield=True), move_on_after(timing.close_timeout):
                await listener.unlisten(channel, deliver)
    return None


async def _refusal(connection: SerialConnection) -> str | None:
    """Return why the pooler lets no notification through, or None if it does."""
    dsn, timing = connection.dsn, connection.timing
    try:
        async with connect(dsn, timing) as listener, connect(dsn, timing) as notifier:
            lag = await measure_lag(listener, notifier)
    except StoreUnavailable as error:
        return f"the connection pooler could not be probed: {error}"
    if lag is not None:
        return None
    return (
        "a connection pooler in transaction mode drops notifications; set "
        "aioabort_listen_dsn to the address of PostgreSQL itself"
    )
