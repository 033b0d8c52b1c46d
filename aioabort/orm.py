"""Results that Celery stores by Django's ORM, with the backend of django-celery-results.

They are read and changed by asyncpg if they are in PostgreSQL. Only what Celery itself
stores goes through the ORM. Its connections belong to threads, and it never renews one
that the server has closed before the thread's next task.
"""

import asyncio
from dataclasses import replace
from importlib import import_module
from typing import Any, Final

from celery import Celery

from aioabort.concurrency.blocking import BlockingThreads
from aioabort.exceptions import StoreUnavailable
from aioabort.models import RESULT_STATES
from aioabort.reconnect import may_pass
from aioabort.settings import OrmTables, Settings

_IDENTIFY: Final = """
    SELECT current_database()::text,
           extract(epoch FROM pg_postmaster_start_time())::text,
           to_regclass(quote_ident(%s))::oid::text
"""


def is_orm_backend(backend: Any) -> bool:
    """Whether *backend* stores results by Django's ORM."""
    return hasattr(backend, "TaskModel") and hasattr(backend, "GroupModel")


def renew_connection(backend: Any) -> None:
    """Close the connection of this thread if it is dead; the next query opens another.

    Does nothing inside a transaction, and for other backends.
    """
    if not is_orm_backend(backend):
        return
    connection = _connection(backend)
    is_open = connection.connection is not None and not connection.in_atomic_block
    if is_open and not connection.is_usable():
        connection.close()


def close_connection(app: Celery) -> None:
    """Close the connection of this thread, which ends; no other code would do so."""
    backend: Any = app.backend
    if is_orm_backend(backend):
        _connection(backend).close()


def store_by_orm_unless_result(
    backend: Any, task_id: str, error: BaseException, state: str, request: Any
) -> bool:
    """Store *error*, unless the task has a result; return whether it was stored.

    That is what the backend does, but the row is locked.
    """
    renew_connection(backend)
    alias = _connection(backend).alias
    encoded = backend.encode_result(error, state)
    rows = backend.TaskModel._default_manager.using(alias).select_for_update()
    with import_module("django.db").transaction.atomic(using=alias):
        row, _ = rows.get_or_create(task_id=task_id)
        if row.status in RESULT_STATES:
            return False
        backend._store_result(task_id, encoded, state, request=request, using=alias)
    return True


async def with_orm_tables(app: Celery, settings: Settings) -> Settings:
    """Return *settings* with the place of the ORM's tables, if that is the backend.

    Raises StoreUnavailable if Django's database cannot be reached.
    """
    if not settings.results_in_orm:
        return settings
    timeout = settings.timing.connect_timeout
    thread = BlockingThreads("aioabort-orm")
    try:
        async with asyncio.timeout(timeout):
            found = await thread.run(lambda: _find_tables(app.backend))
    except TimeoutError as error:
        raise StoreUnavailable(
            f"Django's database does not answer within {timeout:g} s"
        ) from error
    finally:
        thread.stop()
    return replace(settings, orm_tables=found)


def _find_tables(backend: Any) -> OrmTables:
    connection = _connection(backend)
    setting = f"DATABASES[{connection.alias!r}]"
    if connection.vendor != "postgresql":
        return OrmTables(
            problem=f"Django stores them in {connection.display_name} ({setting})"
        )
    try:
        with connection.cursor() as cursor:
            cursor.execute(_IDENTIFY, [backend.TaskModel._meta.db_table])
            database, started_at, oid = cursor.fetchone()
    except Exception as error:
        problem = f"Django's database ({setting}) cannot be read: {error}"
        if may_pass(error):
            raise StoreUnavailable(problem) from error
        return OrmTables(problem=problem)
    finally:
        connection.close()
    return OrmTables(database=database, started_at=started_at, oid=oid)


def _connection(backend: Any) -> Any:
    """Return the connection of this thread to the database that stores results."""
    return backend.TaskModel._default_manager.connection_for_write()
