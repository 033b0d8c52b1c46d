"""Diagnosis of the server, the tables, the rights and the notifications.

It changes nothing: an abort that is tried is rolled back.
"""

from dataclasses import dataclass
from typing import Final, Literal

from aioabort.exceptions import StoreError, StoreUnavailable
from aioabort.postgres.connection import SerialConnection, connect
from aioabort.postgres.dry_run import dry_run
from aioabort.postgres.errors import driver_errors
from aioabort.postgres.listener import measure_lag
from aioabort.postgres.locating import identify, locate
from aioabort.postgres.tables import REQUEST_COLUMNS, Tables
from aioabort.settings import Settings

CHECK_SERVER: Final = """
    -- $1 request table, $2 its schema
    SELECT current_setting('server_version') AS server_version,
           pg_is_in_recovery() AS is_standby,
           has_schema_privilege(to_regnamespace(quote_ident($2))::oid, 'CREATE')
               AS may_create,
           pg_notification_queue_usage() AS queue_usage,
           (SELECT array_agg(attname::text) FROM pg_attribute
            WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped)
               AS columns
"""

# Without DELETE: only cleanup needs it, which may run under another role.
MISSING_RIGHTS: Final = """
    -- $1 request table, $2 Celery's result table, $3 the sequence of its keys
    SELECT privilege || ' on ' || relation AS missing
    FROM unnest(ARRAY[$1, $2]::text[]) AS relation,
         unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS privilege
    -- NULL, and so no row, for a table that does not exist.
    WHERE NOT has_table_privilege(to_regclass(relation), privilege)
    UNION ALL
    SELECT 'USAGE on ' || $3::text
    WHERE NOT has_sequence_privilege(to_regclass($3), 'USAGE')
"""

# Beside a result table of its own, it belongs to another app.
STRAY_TABLES: Final = """
    -- $1 name of the request table, $2 its schema, $3 name of Celery's result table
    SELECT n.nspname::text AS schema
    FROM pg_class AS r
    JOIN pg_namespace AS n ON n.oid = r.relnamespace
    WHERE r.relname = $1::text::name
        AND r.relkind IN ('r', 'p')
        AND n.nspname <> $2
        AND NOT EXISTS (
            SELECT FROM pg_class AS t
            WHERE t.relnamespace = n.oid AND t.relname = $3::text::name
        )
    ORDER BY n.nspname
"""

DESCRIBE_SESSION: Final = """
    SELECT current_user::text AS role,
           current_setting('default_transaction_isolation') AS isolation
"""

COUNT_REQUESTS: Final = """
    SELECT count(*) FILTER (WHERE outcome IS NULL) AS pending,
           count(*) FILTER (WHERE outcome IS NULL AND seen_at IS NULL) AS unseen,
           extract(epoch FROM clock_timestamp() - min(requested_at)
               FILTER (WHERE outcome IS NULL AND seen_at IS NULL))::float8
               AS oldest_unseen,
           count(*) FILTER (WHERE expires_at < now()) AS expired
    FROM {request}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Numbers of abort requests; ``oldest_unseen`` is an age in seconds."""

    pending: int
    unseen: int
    oldest_unseen: float | None
    expired: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Notifications:
    """Whether notifications arrive.

    ``lag``: the seconds that one takes. ``reason``: why none arrives.
    """

    mode: Literal["notify", "poll"]
    reason: str | None = None
    lag: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleView:
    """Which table a role uses, and whether it can abort tasks.

    ``setting``: the setting with the address. ``oid``: None if there is no such table.
    ``failure``: why an abort fails, or None; an abort was tried and rolled back.
    ``isolation``: the isolation level that transactions have by default.
    """

    setting: str
    role: str
    database: str
    address: str
    schema: str | None
    table: str
    oid: int | None
    isolation: str
    failure: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The state of the server, the tables, the rights and the notifications.

    ``views``: what the role of ``aioabort_dsn`` sees and, if it has another address,
    the role of ``aioabort_listen_dsn``. ``stray_tables``: schemas with a request table
    that no result table is beside.
    ``missing_columns``: columns that a request table of an older version lacks.
    ``has_results``: whether Celery's result table exists. ``why_elsewhere``: why results
    of django-celery-results are not read from it. ``may_create``: whether the role may
    create the request table. ``requests``: None if the role may not read them.
    ``queue_usage``: the used part of PostgreSQL's notification queue, from 0 to 1.
    """

    server_version: str
    is_standby: bool
    is_pooled: bool
    views: list[RoleView]
    stray_tables: list[str]
    has_table: bool
    has_results: bool
    why_elsewhere: str | None
    may_create: bool
    missing_columns: list[str]
    missing_rights: list[str]
    requests: Requests | None
    queue_usage: float
    notifications: Notifications


async def diagnose(settings: Settings) -> Diagnosis:
    """Return the diagnosis of the database of *settings*.

    Raises StoreUnavailable if PostgreSQL cannot be reached, and StoreError if it
    refuses.
    """
    async with connect(settings.dsn, settings.timing) as connection:
        location = await locate(connection, settings)
        tables = location.tables
        with driver_errors():
            [server] = await connection.fetch(
                CHECK_SERVER, tables.request, tables.schema
            )
            rights = await connection.fetch(
                MISSING_RIGHTS, tables.request, tables.task, tables.sequence
            )
            strays = await connection.fetch(
                STRAY_TABLES, tables.request_name, tables.schema, tables.task_table
            )
        columns: list[str] | None = server["columns"]
        wanted = {*REQUEST_COLUMNS, "expires_at", "traceparent"}
        return Diagnosis(
            server_version=server["server_version"],
            is_standby=server["is_standby"],
            is_pooled=connection.is_pooled,
            views=[
                await _view(connection, settings, settings.dsn.setting),
                *await _listener_views(settings),
            ],
            # A schema that the settings name is the same for every process.
            stray_tables=[row["schema"] for row in strays if not settings.schema],
            has_table=columns is not None,
            has_results=location.has_task,
            why_elsewhere=location.why_elsewhere,
            may_create=bool(server["may_create"]),
            missing_columns=sorted(wanted.difference(columns)) if columns else [],
            missing_rights=[row["missing"] for row in rights],
            requests=await _count_requests(connection, tables) if columns else None,
            queue_usage=server["queue_usage"],
            notifications=await _probe_notifications(connection, settings),
        )


async def _listener_views(settings: Settings) -> list[RoleView]:
    """Return what the role of another address for LISTEN sees, if it can connect."""
    if settings.listen_dsn == settings.dsn:
        return []
    is_connected = False
    try:
        async with connect(settings.listen_dsn, settings.timing) as connection:
            is_connected = True
            return [await _view(connection, settings, settings.listen_dsn.setting)]
    except StoreError:
        if is_connected:
            raise
        return []  # the probe of the notifications reports it


async def _view(
    connection: SerialConnection, settings: Settings, setting: str
) -> RoleView:
    tables = (await locate(connection, settings)).tables
    identity = await identify(connection, tables)
    with driver_errors():
        [session] = await connection.fetch(DESCRIBE_SESSION)
    return RoleView(
        setting=setting,
        role=session["role"],
        database=identity.database,
        address=identity.address,
        schema=tables.schema,
        table=tables.request,
        oid=None if identity.oid is None else int(identity.oid),
        isolation=session["isolation"],
        failure=await dry_run(connection, settings),
    )


async def _count_requests(
    connection: SerialConnection, tables: Tables
) -> Requests | None:
    try:
        with driver_errors():
            [row] = await connection.fetch(tables.fill(COUNT_REQUESTS))
    except StoreUnavailable:
        raise
    except StoreError:
        return None  # the diagnosis names the missing right or column
    return Requests(**dict(row))


async def _probe_notifications(
    notifier: SerialConnection, settings: Settings
) -> Notifications:
    if not settings.notify:
        return Notifications(mode="poll", reason="aioabort_notify is False")
    try:
        async with connect(settings.listen_dsn, settings.timing) as listener:
            lag = await measure_lag(listener, notifier)
    except StoreError as error:
        return Notifications(mode="poll", reason=f"LISTEN fails: {error}")
    if lag is not None:
        return Notifications(mode="notify", lag=lag)
    return Notifications(
        mode="poll",
        reason="a connection pooler drops notifications"
        if listener.is_pooled
        else "no notification arrived in time",
    )
