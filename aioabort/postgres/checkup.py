"""A look at the server, the tables, the rights and the notifications.

Nothing is changed by it.
"""

import secrets
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import anyio

from aioabort.exceptions import StoreError, StoreUnavailable
from aioabort.postgres.checkup_statements import (
    CHECK_SERVER,
    COUNT_REQUESTS,
    MISSING_RIGHTS,
    REQUEST_COLUMNS,
)
from aioabort.postgres.connection import Link, connect
from aioabort.postgres.errors import driver_errors
from aioabort.postgres.schema import tables_of
from aioabort.postgres.statements import NOTIFY
from aioabort.postgres.tables import Tables
from aioabort.settings import Settings

#: Seconds until a notification counts as one that does not arrive.
PROBE_TIMEOUT = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """How many requests there are; ``oldest_unseen`` is the age of one, in seconds."""

    pending: int
    unseen: int
    oldest_unseen: float | None
    expired: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Notifications:
    """Whether they arrive, after how many seconds (``lag``), and if not, why."""

    mode: Literal["notify", "poll"]
    reason: str | None = None
    lag: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkup:
    """What was found.

    ``missing_columns``: the table comes from an older version. ``has_results``: Celery's
    table is there. ``may_create``: the role may create ours. ``requests`` is None if they cannot be read. ``queue_usage``: which
    part of PostgreSQL's queue of notifications is full, from 0 to 1.
    """

    server_version: str
    is_standby: bool
    is_pooled: bool
    has_table: bool
    has_results: bool
    may_create: bool
    missing_columns: list[str]
    missing_rights: list[str]
    requests: Requests | None
    queue_usage: float
    notifications: Notifications


async def check_up(settings: Settings) -> Checkup:
    """Look at everything.

    Raises StoreUnavailable when the server cannot be reached, and StoreError when it
    refuses to be looked at.
    """
    tables = tables_of(settings)
    async with connect(settings.dsn) as link:
        with driver_errors():
            [server] = await link.fetch(
                CHECK_SERVER, tables.request, tables.task, tables.schema
            )
            rights = await link.fetch(
                MISSING_RIGHTS, tables.request, tables.task, tables.sequence
            )
        columns: list[str] | None = server["columns"]
        missing = set(REQUEST_COLUMNS) - set(columns or ())
        return Checkup(
            server_version=server["server_version"],
            is_standby=server["is_standby"],
            is_pooled=link.is_pooled,
            has_table=columns is not None,
            has_results=server["has_results"],
            may_create=bool(server["may_create"]),
            missing_columns=sorted(missing) if columns else [],
            missing_rights=[row["missing"] for row in rights],
            requests=await _requests(link, tables) if columns else None,
            queue_usage=server["queue_usage"],
            notifications=await _notifications(link, settings),
        )


async def _requests(link: Link, tables: Tables) -> Requests | None:
    try:
        with driver_errors():
            [row] = await link.fetch(tables.fill(COUNT_REQUESTS))
    except StoreUnavailable:
        raise
    except StoreError:
        return None  # for want of a right or a column, which is told as that
    return Requests(**dict(row))


async def _notifications(mouth: Link, settings: Settings) -> Notifications:
    if not settings.notify:
        return Notifications(mode="poll", reason="aioabort_notify is False")
    try:
        async with connect(settings.listen_dsn) as ear:
            lag = await _lag(ear, mouth)
    except StoreError as error:
        return Notifications(mode="poll", reason=f"LISTEN fails: {error}")
    if lag is None:
        pooler = "a connection pooler stands before PostgreSQL"
        reason = pooler if ear.is_pooled else "none arrived in time"
        return Notifications(mode="poll", reason=reason)
    return Notifications(mode="notify", lag=lag)


async def _lag(ear: Link, mouth: Link) -> float | None:
    """Return after how many seconds a notification arrives; None if it does not."""
    channel = f"aioabort_probe_{secrets.token_hex(8)}"
    heard = anyio.Event()

    def hear(*_: object) -> None:
        heard.set()

    with driver_errors():
        await ear.listen(channel, hear)
        try:
            sent_at = perf_counter()
            await mouth.fetch(NOTIFY, channel, ["1:"])
            with anyio.move_on_after(PROBE_TIMEOUT):
                await heard.wait()
        finally:
            # A pooler's own connection would go on listening, for nobody.
            await ear.unlisten(channel, hear)
    return perf_counter() - sent_at if heard.is_set() else None
