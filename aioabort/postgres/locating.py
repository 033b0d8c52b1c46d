"""Finding the tables: which database, which schema, and whether they exist.

A name without a schema means another table to another role or ``search_path``. So the
schemas are found once for each connection, and every statement names them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from aioabort.exceptions import StoreError
from aioabort.postgres.connection import Executor
from aioabort.postgres.dialects import CELERY, DJANGO
from aioabort.postgres.errors import driver_errors
from aioabort.postgres.tables import Tables
from aioabort.settings import Settings

# The request table is in the schema of Celery's result table. Only without that table,
# the search_path decides.
FIND_TABLES: Final = """
    -- $1 Celery's result table, $2 its schema, or NULL, $3 the request table,
    -- $4 its table of groups, $5 the schema of that, or NULL
    WITH relations (name, id) AS (
        SELECT name, to_regclass(quote_ident(name))::oid
        FROM unnest(ARRAY[$1, $3, $4, 'task_id_sequence', 'taskset_id_sequence']::text[])
            AS name
    ),
    by_path AS (
        SELECT name, (pg_identify_object('pg_class'::regclass, id, 0)).schema
        FROM relations
    ),
    place AS (
        SELECT coalesce(
                   $2::text,
                   (SELECT schema FROM by_path WHERE name = $1),
                   (SELECT schema FROM by_path WHERE name = $3),
                   current_schema()::text
               ) AS schema,
               coalesce($5::text, (SELECT schema FROM by_path WHERE name = $4))
                   AS group_schema
    ),
    names AS (
        SELECT schema, group_schema,
               quote_ident(schema) || '.' AS prefix,
               -- In a schema that the role may not use, to_regclass() fails.
               CASE WHEN has_schema_privilege(
                       to_regnamespace(quote_ident(group_schema))::oid, 'USAGE')
                   THEN quote_ident(group_schema) || '.' END AS group_prefix
        FROM place
    )
    SELECT schema, group_schema,
           to_regclass(prefix || quote_ident($3)) IS NOT NULL AS has_request,
           to_regclass(prefix || quote_ident($1))::oid::text AS task_oid,
           current_database()::text AS database,
           extract(epoch FROM pg_postmaster_start_time())::text AS started_at,
           coalesce(
               has_table_privilege(
                   to_regclass(group_prefix || quote_ident($4)), 'SELECT'),
               false
           ) AS has_groups,
           CASE WHEN to_regclass(prefix || 'task_id_sequence') IS NULL
               THEN (SELECT schema FROM by_path WHERE name = 'task_id_sequence')
           END AS sequence_schema,
           CASE WHEN to_regclass(group_prefix || 'taskset_id_sequence') IS NULL
               THEN (SELECT schema FROM by_path WHERE name = 'taskset_id_sequence')
           END AS group_sequence_schema
    FROM names
"""

# The moment at which the server started tells a server from its clones, which have the
# same oids. Text, because a pool of the user's may decode other types in its own way.
IDENTIFY: Final = """
    -- $1 the request table
    SELECT current_database()::text AS database,
           coalesce(host(inet_server_addr()) || ':' || inet_server_port(),
                    'a local socket, port ' || current_setting('port')) AS address,
           extract(epoch FROM pg_postmaster_start_time())::text AS started_at,
           to_regclass($1)::oid::text AS oid
"""


@dataclass(frozen=True, slots=True)
class Location:
    """The names of the tables with their schemas, and which of the tables exist.

    ``why_elsewhere``: why the results of a backend that may keep them in this database
    are not read from it.
    """

    tables: Tables
    has_request: bool
    has_task: bool
    why_elsewhere: str | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """Which table a name means on a connection; two that are equal are one table."""

    table: str
    database: str
    address: str
    started_at: str
    oid: str | None

    def __str__(self) -> str:
        table = f"{self.table} (oid {self.oid})" if self.oid else f"no {self.table}"
        return f"database {self.database!r} at {self.address} with {table}"

    @property
    def in_database(self) -> tuple[str, str | None]:
        """What stays the same if a standby of the server takes over."""
        return self.database, self.oid


def tables_of(settings: Settings) -> Tables:
    """Return the names of the tables, with the schemas that the settings name."""
    return Tables(
        settings.task_table,
        settings.schema,
        group_table=settings.group_table,
        group_schema=settings.group_schema,
        dialect=DJANGO if settings.results_in_orm else CELERY,
    )


async def locate(executor: Executor, settings: Settings) -> Location:
    """Find the schemas of the tables."""
    tables = tables_of(settings)
    with driver_errors():
        [row] = await executor.fetch(
            FIND_TABLES,
            tables.task_table,
            tables.schema,
            tables.request_name,
            tables.group_table,
            tables.group_schema,
        )
    has_task = row["task_oid"] is not None
    why_elsewhere = _why_elsewhere(dict(row), settings)
    tables = replace(
        tables,
        has_results=settings.results_in_dsn and has_task and not why_elsewhere,
        has_groups=row["has_groups"],
        schema=row["schema"],
        group_schema=row["group_schema"],
        sequence_schema=row["sequence_schema"],
        group_sequence_schema=row["group_sequence_schema"],
    )
    return Location(tables, row["has_request"], has_task, why_elsewhere)


def _why_elsewhere(row: Mapping[str, Any], settings: Settings) -> str | None:
    """Return why results that Django stores are not read from the database in *row*."""
    if not settings.results_in_orm:
        return None
    orm, table = settings.orm_tables, settings.task_table
    if orm is not None and orm.problem is not None:
        return orm.problem
    if orm is not None and orm.oid is None:
        return (
            f"Django's database {orm.database!r} has no table {table}: "
            "run manage.py migrate"
        )
    if row["task_oid"] is None:
        return f"the table {table} is not in {settings.dsn} ({settings.dsn.setting})"
    if orm is not None and orm != replace(
        orm, database=row["database"], started_at=row["started_at"], oid=row["task_oid"]
    ):
        return (
            f"Django has its table {table} (oid {orm.oid}) in database "
            f"{orm.database!r}, and {settings.dsn.setting} leads to another one (oid "
            f"{row['task_oid']}) in database {row['database']!r}"
        )
    return None


async def identify(executor: Executor, tables: Tables) -> Identity:
    """Return which table the name of the request table means to *executor*."""
    with driver_errors():
        [row] = await executor.fetch(IDENTIFY, tables.request)
    columns: dict[str, Any] = dict(row)
    return Identity(tables.request, **columns)


async def check_pool_leads_to_same_table(
    pool: Executor, own: Executor, tables: Tables, settings: Settings
) -> None:
    """Raise StoreError if the user's *pool* leads to another table than *own*."""
    theirs, ours = await identify(pool, tables), await identify(own, tables)
    # One server may have several addresses.
    if replace(theirs, address=ours.address) != ours:
        raise StoreError(
            f"The pool that was passed to the client leads to {theirs}, "
            f"but {settings.dsn.setting} to {ours}"
        )


async def check_listener_leads_to_same_table(
    listener: Executor, executor: Executor, tables: Tables, settings: Settings
) -> None:
    """Raise StoreError if the address for LISTEN leads to another table."""
    theirs, ours = await identify(listener, tables), await identify(executor, tables)
    if theirs.in_database != ours.in_database:
        raise StoreError(
            f"{settings.listen_dsn.setting} leads to {theirs}, "
            f"but {settings.dsn.setting} to {ours}"
        )
