"""The table of requests: its definition, and how it comes into being."""

from importlib import resources

from aioabort.postgres import statements
from aioabort.postgres.connection import Executor, connect
from aioabort.postgres.errors import driver_errors
from aioabort.postgres.result_statements import ALL_COLUMNS, COLUMNS_OF
from aioabort.postgres.tables import Tables
from aioabort.settings import Settings


def tables_of(settings: Settings) -> Tables:
    """Return the names of the tables."""
    return Tables(
        settings.task_table,
        settings.schema,
        group_table=settings.group_table,
        group_schema=settings.group_schema,
    )


def schema_sql(tables: Tables) -> str:
    """Return the statements that create the table of requests if it is missing."""
    return tables.fill(_read("schema.sql"))


def result_schema_sql(tables: Tables) -> str:
    """Return the statements that create what is missing of Celery's tables."""
    return tables.fill(
        _read("celery_taskmeta.sql") + "\n" + _read("celery_columns.sql")
    )


def _read(name: str) -> str:
    return resources.files("aioabort.postgres").joinpath(name).read_text()


async def create_table(executor: Executor, tables: Tables) -> None:
    """Create the table of requests if it is missing."""
    await executor.execute(schema_sql(tables))


async def create_result_tables(executor: Executor, tables: Tables) -> None:
    """Create Celery's tables, or the columns that a table of an older Celery lacks.

    That one gets no index: to build it might take longer than a statement may.
    """
    columns = await result_columns(executor, tables)
    if not columns:
        await executor.execute(result_schema_sql(tables))
    elif not columns.issuperset(ALL_COLUMNS):
        await executor.execute(tables.fill(_read("celery_columns.sql")))


async def result_columns(executor: Executor, tables: Tables) -> frozenset[str]:
    """Return the columns of Celery's table; there are none if it is missing."""
    rows = await executor.fetch(COLUMNS_OF, tables.task)
    return frozenset(row["name"] for row in rows)


async def init_db(settings: Settings) -> bool:
    """Create the table of requests; return False if it was there.

    With our own result backend, Celery's tables are created, too, and completed.

    Raises StoreUnavailable when the server cannot be reached, and StoreError when it
    refuses. What ``aioabort_create_tables`` says does not matter here.
    """
    tables = tables_of(settings)
    async with connect(settings.dsn) as link:
        with driver_errors():
            [row] = await link.fetch(
                statements.TABLES_EXIST, tables.request, tables.task
            )
            if settings.stores_results:
                await create_result_tables(link, tables)
            if row["has_request"]:
                return False
            await create_table(link, tables)
            return True
