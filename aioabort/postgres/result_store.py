"""Celery's tables of results and groups, in the schema of its database backend.

Every method raises StoreUnavailable if PostgreSQL cannot be reached, and StoreError if
it refuses.
"""

import logging
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, Self

import asyncpg

from aioabort.exceptions import StoreError, StoreUnavailable
from aioabort.models import TaskRow
from aioabort.postgres import result_statements as statements
from aioabort.postgres.connection import SerialConnection
from aioabort.postgres.errors import driver_errors
from aioabort.postgres.patience import fetch_patiently
from aioabort.postgres.rows import to_task_row
from aioabort.postgres.schema import create_result_tables, result_columns
from aioabort.postgres.tables import Tables
from aioabort.settings import Settings
from aioabort.timing import Timing

#: Bytes per second of a slow network: a large result gets more time.
SLOWEST = 1_000_000

#: Expired rows per statement, so that no statement runs for long.
CLEANUP_BATCH = 1_000

logger: logging.Logger = logging.getLogger(__name__)

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StateWrite:
    """Whether a state was stored, and the task's row with its abort request."""

    is_stored: bool
    row: TaskRow


async def open_result_store(
    connection: SerialConnection, tables: Tables, settings: Settings
) -> "ResultStore":
    """Return the store on *connection*; create what is missing if the settings allow it.

    If the role may not add a missing column, the store leaves out its values.
    """
    wanted = frozenset(statements.ALL_COLUMNS)
    with driver_errors():
        columns = await result_columns(connection, tables)
    if wanted - columns and settings.create_tables:
        try:
            with driver_errors():
                await create_result_tables(connection, tables)
                columns = await result_columns(connection, tables)
        except StoreUnavailable:
            raise
        except StoreError as error:
            if not columns:
                raise
            missing = ", ".join(sorted(wanted - columns))
            logger.warning("%s has no columns %s: %s", tables.task, missing, error)
    if not columns:
        raise StoreError(
            f"the table {tables.task} is missing in {settings.dsn}, "
            "and aioabort_create_tables is False"
        )
    return ResultStore(connection, tables, columns, settings.timing)


class ResultStore:
    """Celery's table of results and its table of groups."""

    def __init__(
        self,
        connection: SerialConnection,
        tables: Tables,
        columns: frozenset[str],
        timing: Timing,
    ) -> None:
        self._timing = timing
        self._connection = connection
        self._tables = tables
        self._columns = columns
        self._store_statements: dict[tuple[str, ...], str] = {}
        self._read_result = tables.fill(
            statements.read_result(
                [name for name in statements.ALL_COLUMNS if name in columns]
            )
        )
        self._has_result = tables.fill(statements.HAS_RESULT)
        self._delete_result = tables.fill(statements.DELETE_RESULT)
        self._save_group = tables.fill(statements.SAVE_GROUP)
        self._restore_group = tables.fill(statements.RESTORE_GROUP)
        self._delete_group = tables.fill(statements.DELETE_GROUP)

    def on(self, connection: SerialConnection) -> Self:
        """Return this store, which runs its statements on *connection*."""
        store = copy(self)
        store._connection = connection
        return store

    async def store_result(
        self, task_id: str, values: Values, size: int, *, is_fresh: bool = False
    ) -> StateWrite:
        """Store *values*, of *size* bytes, unless the stored state takes precedence.

        Precedence: SUCCESS > FAILURE > REVOKED > pending abort > the rest. *is_fresh*: this
        is the first state of a publication's first run. It replaces FAILURE and REVOKED.
        """
        columns = tuple(name for name in values if name in self._columns)
        statement = self._store_statements.get(columns)
        if statement is None:
            statement = self._tables.fill(statements.store_result(columns))
            self._store_statements[columns] = statement
        [row] = await self._fetch(
            statement,
            task_id,
            *(values[name] for name in columns),
            is_fresh,
            timeout=self._timing.statement_timeout + size / SLOWEST,
        )
        return StateWrite(row["is_stored"], to_task_row(row))

    async def read_result(self, task_id: str, largest: int) -> dict[str, Any] | None:
        """Return the columns of the task, still encoded, and the ``size`` of its result.

        ``result`` is None if it has more than *largest* bytes. Returns None if there is
        no row.
        """
        timeout = self._timing.statement_timeout + largest / SLOWEST
        rows = await self._fetch(self._read_result, task_id, largest, timeout=timeout)
        return dict(rows[0]) if rows else None

    async def has_result(self, task_id: str) -> bool:
        """Whether the table has a row of the task."""
        return bool(await self._fetch(self._has_result, task_id))

    async def delete_result(self, task_id: str) -> None:
        """Delete the row of the task."""
        await self._fetch(self._delete_result, task_id)

    async def save_group(self, group_id: str, result: bytes | None) -> None:
        """Store the encoded *result* of a group."""
        await self._fetch(self._save_group, group_id, result)

    async def restore_group(self, group_id: str) -> dict[str, Any] | None:
        """Return the columns of the group, still encoded, or None."""
        rows = await self._fetch(self._restore_group, group_id)
        return dict(rows[0]) if rows else None

    async def delete_group(self, group_id: str) -> None:
        """Delete the row of the group."""
        await self._fetch(self._delete_group, group_id)

    async def delete_expired(self, age: float) -> int:
        """Delete rows that were stored at least *age* seconds ago; return their number."""
        deleted = 0
        for statement in (statements.DELETE_EXPIRED, statements.DELETE_EXPIRED_GROUPS):
            filled = self._tables.fill(statement)
            batch = CLEANUP_BATCH
            while batch == CLEANUP_BATCH:
                [row] = await self._fetch(filled, age, CLEANUP_BATCH)
                batch = row["deleted"]
                deleted += batch
        return deleted

    async def _fetch(
        self, statement: str, *args: Any, timeout: float | None = None
    ) -> list[asyncpg.Record]:
        return await fetch_patiently(
            self._connection,
            self._timing.busy_timeout,
            statement,
            *args,
            timeout=timeout,
        )
