"""System checks: whether the tasks of this project can be aborted, and if not, why.

An error says that tasks cannot be aborted, a warning that something else is wrong. No
message contains a password.
"""

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from celery import Celery
from celery.exceptions import ImproperlyConfigured
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.db import connections
from django.db.migrations.recorder import MigrationRecorder

from aioabort.celery_compat import resolve_current_app
from aioabort.concurrency.fork_gate import run_between_forks
from aioabort.django.databases import (
    NotPostgreSQL,
    UnknownAlias,
    is_postgresql,
    request_alias,
)
from aioabort.exceptions import StoreError, StoreUnavailable
from aioabort.orm import with_orm_tables
from aioabort.postgres.diagnostics import Diagnosis, RoleView, diagnose
from aioabort.settings import read_settings

_ALIAS_HINT: Final = (
    "Set AIOABORT_DATABASE to the alias of the PostgreSQL database that has the "
    "abort requests."
)

_IDENTIFY: Final = (
    "SELECT current_database()::text, to_regclass('aioabort_request')::oid::bigint"
)


def check_configuration(**_: Any) -> list[CheckMessage]:
    """Check the settings of the Celery app, without connecting."""
    app = resolve_current_app()
    try:
        read_settings(app)
        return [*_check_app(app), *_check_admin()]
    except UnknownAlias as error:
        return [Error(str(error), hint=_ALIAS_HINT, id="aioabort.E001")]
    except NotPostgreSQL as error:
        hint = f"{_ALIAS_HINT} Where no task is aborted, silence this check."
        return [Error(str(error), hint=hint, id="aioabort.E002")]
    except ImproperlyConfigured as error:
        return [Error(str(error), id="aioabort.E003")]


def check_database(
    databases: Collection[str] | None = None, **_: Any
) -> list[CheckMessage]:
    """Try an abort as the Celery app would make it, and roll it back."""
    if request_alias() not in (databases or ()):
        return []
    try:
        # In a thread, because this one may run an event loop.
        with ThreadPoolExecutor(1) as executor:
            diagnosis = executor.submit(examine, resolve_current_app()).result()
    except ImproperlyConfigured:
        return []  # check_configuration() reports it.
    except StoreError as error:
        return [_unusable(error)]
    return list(_interpret(diagnosis))


def examine(app: Celery) -> Diagnosis:
    """Return the diagnosis of the database of *app*, on an event loop of its own."""
    return run_between_forks(_diagnose(app))


async def _diagnose(app: Celery) -> Diagnosis:
    return await diagnose(await with_orm_tables(app, read_settings(app)))


def problems(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield why tasks cannot be aborted."""
    if diagnosis.missing_rights:
        rights = ", ".join(diagnosis.missing_rights)
        yield f"the role {diagnosis.views[0].role!r} lacks {rights}"
    elif diagnosis.missing_columns:
        columns = ", ".join(diagnosis.missing_columns)
        yield f"the table {diagnosis.views[0].table} has no columns {columns}"
    for view in diagnosis.views:
        if view.failure is not None and not diagnosis.missing_rights:
            yield f"an abort by the role {view.role!r} fails: {view.failure}"


def _check_app(app: Celery) -> Iterator[CheckMessage]:
    # The name of the app that Celery makes if there is none.
    if app.main == "default":
        yield CheckWarning(
            "this process has not loaded the Celery app of the project",
            hint="Import it in the __init__.py beside settings.py: "
            "from .celery import app as celery_app",
            id="aioabort.W001",
        )


def _check_admin() -> Iterator[CheckMessage]:
    alias = request_alias()
    if not is_postgresql(alias):
        yield CheckWarning(
            f"DATABASES[{alias!r}] is {connections[alias].display_name}: "
            "the admin cannot show the abort requests",
            hint=_ALIAS_HINT,
            id="aioabort.W003",
        )


def _unusable(error: StoreError) -> CheckMessage:
    if isinstance(error, StoreUnavailable):
        hint = "Check that PostgreSQL runs, and HOST and PORT in DATABASES."
        return Error(str(error), hint=hint, id="aioabort.E004")
    hint = "Check NAME, USER and PASSWORD in DATABASES."
    return Error(str(error), hint=hint, id="aioabort.E005")


def _interpret(diagnosis: Diagnosis) -> Iterator[CheckMessage]:
    used = diagnosis.views[0]
    if not diagnosis.has_table:
        # Otherwise `migrate` is yet to create it, and Django says so.
        if _is_migrated():
            yield CheckWarning(
                f"the table {used.table} is missing, although it was migrated",
                hint="Run `celery -A … aioabort init-db`.",
                id="aioabort.W002",
            )
        return
    for problem in problems(diagnosis):
        hint = "Run `celery -A … aioabort doctor` for all details."
        yield Error(problem, hint=hint, id="aioabort.E006")
    yield from _compare(used)


def _is_migrated() -> bool:
    alias = request_alias()
    if not is_postgresql(alias):
        return False
    applied = MigrationRecorder(connections[alias]).applied_migrations()
    return ("aioabort", "0001_initial") in applied


def _compare(used: RoleView) -> Iterator[CheckMessage]:
    """Compare the table that the Celery app uses with the one that Django finds."""
    alias = request_alias()
    if not is_postgresql(alias):
        return
    with connections[alias].cursor() as cursor:
        cursor.execute(_IDENTIFY)
        found = cursor.fetchone()
    if found != (used.database, used.oid):
        yield CheckWarning(
            f"the abort requests of the Celery app are in {used.table} in database "
            f"{used.database!r} (from {used.setting}), but DATABASES[{alias!r}] leads "
            "to another table: the admin does not show them",
            hint=_ALIAS_HINT,
            id="aioabort.W003",
        )
