"""A database for the demo's results, and how many statements reach it."""

import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, LiteralString
from uuid import uuid4

import psycopg
from psycopg import sql
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from aioabort.demo.errors import Unusable
from aioabort.testing.postgres import LaunchError, Server, throwaway_postgres

Admin = psycopg.Connection[tuple[Any, ...]]

CONNECT_TIMEOUT: Final = 10

COUNTS: Final[dict[str, LiteralString]] = {
    "statements": """
        SELECT coalesce(sum(calls), 0) FROM pg_stat_statements
        WHERE dbid = (SELECT oid FROM pg_database WHERE datname = %s)
    """,
    "transactions": """
        SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s
    """,
}

ENDED: Final = """
    SELECT count(*), extract(epoch FROM max(date_done) - min(date_done))
    FROM celery_taskmeta
    WHERE task_id = ANY(%s) AND status = 'SUCCESS'
"""

#: Seconds after which a PostgreSQL backend has reported its transactions.
REPORTED_AFTER: Final = 1.5


@dataclass(frozen=True)
class Database:
    """Where results are kept; what *admin* does is not counted."""

    url: URL
    admin: Admin
    #: What can be counted: statements, if PostgreSQL was started so.
    unit: str
    note: str = ""

    @property
    def result_backend(self) -> str:
        """The database in Celery's words."""
        url = self.url.set(drivername="db+postgresql+psycopg")
        return url.render_as_string(hide_password=False)

    def count(self) -> int:
        """Return how many statements, or transactions, it has seen."""
        if self.unit == "transactions":
            time.sleep(REPORTED_AFTER)
        row = self.admin.execute(COUNTS[self.unit], [self.url.database]).fetchone()
        return int(row[0]) if row else 0

    def ended(self, task_ids: list[str]) -> tuple[int, float]:
        """Return how many of the tasks have ended, and within how many seconds."""
        with _connect(self.url) as connection:
            row = connection.execute(ENDED, [task_ids]).fetchone()
        return (row[0], float(row[1] or 0)) if row else (0, 0.0)


@contextmanager
def open_database(dsn: str | None) -> Generator[Database]:
    """Open a database of our own, on the server at *dsn* or on a throw-away one.

    If the role at *dsn* may not create one, it is the database that *dsn* names.
    Raises Unusable when there is no server.
    """
    with ExitStack() as stack:
        url = _parse(dsn or _start_server(stack).dsn())
        admin = stack.enter_context(_connect(url))
        if dsn is None:
            with suppress(psycopg.Error):
                admin.execute("CREATE EXTENSION pg_stat_statements")
        unit = _unit(admin)
        try:
            name = stack.enter_context(_created_database(admin))
        except psycopg.errors.InsufficientPrivilege:
            note = (
                f"The role may not create a database: using {url.database!r}, "
                "where the rows of this demo's tasks will stay"
            )
            yield Database(url, admin, unit, note)
        else:
            yield Database(url.set(database=name), admin, unit)


def _start_server(stack: ExitStack) -> Server:
    counting = {"shared_preload_libraries": "pg_stat_statements"}
    try:
        with suppress(LaunchError):  # it may be a PostgreSQL without contrib modules
            return stack.enter_context(throwaway_postgres(settings=counting))
        return stack.enter_context(throwaway_postgres())
    except LaunchError as error:
        raise Unusable(str(error)) from None


def _parse(dsn: str) -> URL:
    try:
        url = make_url(dsn.removeprefix("db+"))
    except ArgumentError:
        url = None
    if url is None or not url.drivername.startswith("postgres"):
        raise Unusable("--dsn: not a PostgreSQL URL such as postgresql://user@host/db")
    return url


def _connect(url: URL) -> Admin:
    try:
        return psycopg.connect(
            url.set(drivername="postgresql").render_as_string(hide_password=False),
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT,
        )
    except psycopg.Error as error:
        raise Unusable(f"--dsn: {' '.join(str(error).split())}") from None


def _unit(admin: Admin) -> str:
    with suppress(psycopg.Error):
        admin.execute(COUNTS["statements"], [""])
        return "statements"
    return "transactions"


@contextmanager
def _created_database(admin: Admin) -> Generator[str]:
    name = f"aioabort_demo_{uuid4().hex[:12]}"
    identifier = sql.Identifier(name)
    admin.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
    try:
        yield name
    finally:
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))
