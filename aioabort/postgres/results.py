"""Celery's tables of results and groups, as its database backend keeps them.

Every method raises StoreUnavailable when the server cannot be reached, and StoreError
when it refuses.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import asyncpg

from aioabort.exceptions import StoreError, StoreUnavailable
from aioabort.postgres import result_statements as statements
from aioabort.postgres.connection import STATEMENT_TIMEOUT, Link
from aioabort.postgres.errors import driver_errors
from aioabort.postgres.schema import create_result_tables, result_columns, tables_of
from aioabort.postgres.store import to_row
from aioabort.postgres.tables import Tables
from aioabort.records import TaskRow
from aioabort.settings import Settings

#: Bytes a second that a statement is given time for, however slow the network.
SLOWEST = 1_000_000

#: Expired rows a statement, so that none runs for long.
CLEANUP_BATCH = 1_000

logger: logging.Logger = logging.getLogger(__name__)

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stored:
    """Whether a state was stored, and what is known of a request to abort the task."""

    is_stored: bool
    row: TaskRow


async def open_results(link: Link, settings: Settings) -> "ResultTables":
    """Return the tables behind *link*; what they lack is created, if that is allowed.

    Without the right to that, what has no column is not stored.
    """
    tables = tables_of(settings)
    wanted = frozenset(statements.ALL_COLUMNS)
    with driver_errors():
        columns = await result_columns(link, tables)
    if wanted - columns and settings.create_tables:
        try:
            with driver_errors():
                await create_result_tables(link, tables)
                columns = await result_columns(link, tables)
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
    return ResultTables(link, tables, columns)


class ResultTables:
    """Celery's two tables."""

    def __init__(self, link: Link, tables: Tables, columns: frozenset[str]) -> None:
        self._link = link
        self._tables = tables
        self._columns = columns
        self._statements: dict[tuple[str, ...], str] = {}
        self._read = tables.fill(
            statements.read(
                [name for name in statements.ALL_COLUMNS if name in columns]
            )
        )
        self._exists = tables.fill(statements.EXISTS)
        self._forget = tables.fill(statements.FORGET)
        self._save_group = tables.fill(statements.SAVE_GROUP)
        self._restore_group = tables.fill(statements.RESTORE_GROUP)
        self._delete_group = tables.fill(statements.DELETE_GROUP)

    async def store(
        self, task_id: str, values: Values, size: int, *, is_fresh: bool = False
    ) -> Stored:
        """Store *values* of the task, *size* bytes of them, if nothing better is stored.

        Better are a SUCCESS, a final state than one that is not, and a request to abort
        than any but a final state; *is_fresh* tells of the first state of a run for
        which the id was published anew.
        """
        columns = tuple(name for name in values if name in self._columns)
        statement = self._statements.get(columns)
        if statement is None:
            statement = self._tables.fill(statements.store(columns))
            self._statements[columns] = statement
        [row] = await self._fetch(
            statement,
            task_id,
            *(values[name] for name in columns),
            is_fresh,
            timeout=STATEMENT_TIMEOUT + size / SLOWEST,
        )
        return Stored(row["is_stored"], to_row(row))

    async def read(self, task_id: str) -> dict[str, Any] | None:
        """Return what is stored of the task, still encoded."""
        rows = await self._fetch(self._read, task_id)
        return dict(rows[0]) if rows else None

    async def exists(self, task_id: str) -> bool:
        """Whether anything is stored of the task."""
        return bool(await self._fetch(self._exists, task_id))

    async def forget(self, task_id: str) -> None:
        """Delete what is stored of the task."""
        await self._fetch(self._forget, task_id)

    async def save_group(self, group_id: str, result: bytes | None) -> None:
        """Store a group, encoded."""
        await self._fetch(self._save_group, group_id, result)

    async def restore_group(self, group_id: str) -> dict[str, Any] | None:
        """Return what is stored of the group, still encoded."""
        rows = await self._fetch(self._restore_group, group_id)
        return dict(rows[0]) if rows else None

    async def delete_group(self, group_id: str) -> None:
        """Delete what is stored of the group."""
        await self._fetch(self._delete_group, group_id)

    async def delete_expired(self, age: float) -> int:
        """Delete what was stored *age* seconds ago or before; return how many rows."""
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
        with driver_errors():
            return await self._link.fetch(statement, *args, timeout=timeout)
