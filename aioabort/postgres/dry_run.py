"""Aborting a task that does not exist, in a transaction that is rolled back.

Only a value of Celery's sequence is used up: no rollback gives it back.
"""

import secrets
from datetime import UTC, datetime
from typing import Final

import asyncpg

from aioabort.exceptions import StoreError
from aioabort.postgres import request_statements as statements
from aioabort.postgres.connection import SerialConnection
from aioabort.postgres.errors import driver_errors
from aioabort.postgres.result_store import ResultStore
from aioabort.postgres.schema import open_tables, result_columns
from aioabort.settings import Settings

#: Seconds until cleanup could delete the request, if it were committed.
_EXPIRES: Final = 1.0


async def dry_run(connection: SerialConnection, settings: Settings) -> str | None:
    """Return why an abort fails, or None if it works.

    Missing tables are created in the transaction if the settings allow it.
    """
    with driver_errors():
        transaction = connection.asyncpg_connection.transaction()
        await transaction.start()
        try:
            await _abort(connection, settings)
        except StoreError as error:
            return _explain(error)
        finally:
            await transaction.rollback()
    return None


async def _abort(connection: SerialConnection, settings: Settings) -> None:
    tables = await open_tables(connection, settings)
    task_id = f"aioabort-doctor-{secrets.token_hex(8)}"
    if tables.has_results:
        request, settle = statements.REQUEST_ABORTS, statements.SETTLE_REQUESTS
        replaced: tuple[list[object], ...] = ()
    else:
        request = statements.REQUEST_ABORTS_ALONE
        settle = statements.SETTLE_REQUESTS_ALONE
        replaced = ([], [])
    with driver_errors():
        [row] = await connection.fetch(
            *(tables.fill(request), [task_id], None, None, _EXPIRES, None, None),
            *replaced,
        )
        await connection.fetch(
            *(tables.fill(statements.RECORD_SEEN), [task_id]),
            *([row["requested_at"]], [0.0], "doctor"),
        )
        await connection.fetch(tables.fill(settle), [task_id], ["aborted"])
        if settings.stores_results and tables.has_results:
            columns = await result_columns(connection, tables)
            results = ResultStore(connection, tables, columns, settings.timing)
            values = {
                "status": "REVOKED",
                "result": b"",
                "date_done": datetime.now(UTC),
            }
            await results.store_result(task_id, values, 0)


def _explain(error: StoreError) -> str:
    cause = error.__cause__
    if isinstance(cause, asyncpg.InvalidColumnReferenceError):
        return f"{cause}: a unique index on task_id is missing"
    return str(cause or error)
