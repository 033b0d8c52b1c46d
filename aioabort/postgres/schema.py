"""The tables: their names, their definitions, and how they are created."""

import logging
from functools import cache
from importlib import resources
from typing import Final

from aioabort.exceptions import StoreError, StoreUnavailable
from aioabort.postgres.connection import Executor, connect
from aioabort.postgres.errors import driver_errors
from aioabort.postgres.locating import locate
from aioabort.postgres.result_statements import ALL_COLUMNS, COLUMNS_OF
from aioabort.postgres.tables import Tables
from aioabort.settings import Settings

#: Several processes may create the tables at the same time, and wait for each other.
_PATIENTLY: Final = "SET LOCAL lock_timeout = '10s';\n"


logger: logging.Logger = logging.getLogger(__name__)


def schema_sql(tables: Tables) -> str:
    """Return the statements that create the request table if it is missing."""
    return tables.fill(_read("schema.sql"))


def result_schema_sql(tables: Tables) -> str:
    """Return the statements that create the missing tables and columns of Celery."""
    return tables.fill(
        _read("celery_taskmeta.sql") + "\n" + _read("celery_columns.sql")
    )


def _read(name: str) -> str:
    return resources.files("aioabort.postgres").joinpath("sql", name).read_text()


async def create_request_table(executor: Executor, tables: Tables) -> None:
    """Create the request table if it is missing."""
    await executor.execute(_PATIENTLY + schema_sql(tables))


async def create_result_tables(executor: Executor, tables: Tables) -> None:
    """Create Celery's tables, or add the columns that an older Celery did not create.

    An existing table gets no index: building it could take longer than a statement may.
    """
    columns = await result_columns(executor, tables)
    if not columns:
        await executor.execute(_PATIENTLY + result_schema_sql(tables))
    elif not columns.issuperset(ALL_COLUMNS):
        await executor.execute(_PATIENTLY + tables.fill(_read("celery_columns.sql")))


async def result_columns(executor: Executor, tables: Tables) -> frozenset[str]:
    """Return the columns of Celery's result table; none if it is missing."""
    rows = await executor.fetch(COLUMNS_OF, tables.task)
    return frozenset(row["name"] for row in rows)


async def open_tables(executor: Executor, settings: Settings) -> Tables:
    """Find the tables; create what is missing if the settings allow it."""
    location = await locate(executor, settings)
    if location.why_elsewhere is not None:
        _warn_once(location.why_elsewhere)
    if not location.has_task and settings.stores_results and settings.create_tables:
        with driver_errors():
            await create_result_tables(executor, location.tables)
        location = await locate(executor, settings)
    if not location.has_request:
        if not settings.create_tables:
            raise StoreError(
                f"the table {location.tables.request} is missing in {settings.dsn}, "
                "and aioabort_create_tables is False"
            )
        try:
            with driver_errors():
                await create_request_table(executor, location.tables)
        except StoreUnavailable:
            raise
        except StoreError:
            # Another role may have created it meanwhile: only the owner of a table may
            # create an index that exists.
            location = await locate(executor, settings)
            if not location.has_request:
                raise
    return location.tables


@cache
def _warn_once(why_elsewhere: str) -> None:
    logger.warning(
        "aioabort does not read the results of result_backend from PostgreSQL, but by "
        "Celery's own backend: %s",
        why_elsewhere,
    )


async def init_db(settings: Settings) -> tuple[Tables, bool]:
    """Create the request table; return the tables, and False if it exists.

    If aioabort is the result backend, create or complete Celery's tables, too. The
    setting ``aioabort_create_tables`` is ignored.

    Raises StoreUnavailable if PostgreSQL cannot be reached, and StoreError if it
    refuses.
    """
    async with connect(settings.dsn, settings.timing) as connection:
        location = await locate(connection, settings)
        with driver_errors():
            if settings.stores_results:
                await create_result_tables(connection, location.tables)
                location = await locate(connection, settings)
            if not location.has_request:
                await create_request_table(connection, location.tables)
        return location.tables, not location.has_request
