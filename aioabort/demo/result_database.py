"""The database for the demo's results, and how many statements it has executed."""

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

from aioabort.demo import UnusableOption
from aioabort.testing.postgres import (
    ServerStartError,
    ThrowawayServer,
    throwaway_postgres,
)

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

#: Seconds within which PostgreSQL's backends report their transactions.
REPORT_DELAY: Final = 1.5


@dataclass(frozen=True)
class ResultDatabase:
    """The database of the results; statements of *admin* are not counted."""

    url: URL
    admin: Admin
    #: What ``count()`` counts: "statements", or without pg_stat_statements
    #: "transactions".
    unit: str
    note: str = ""

    @property
    def result_backend(self) -> str:
        """The value for Celery's setting ``result_backend``."""
        url = self.url.set(drivername="db+postgresql+psycopg")
        return url.render_as_string(hide_password=False)

    def count(self) -> int:
        """Return how many statements, or transactions, it has executed."""
        if self.unit == "transactions":
            time.sleep(REPORT_DELAY)
        row = self.admin.execute(COUNTS[self.unit], [self.url.database]).fetchone()
        return int(row[0]) if row else 0

    def count_ended(self, task_ids: list[str]) -> tuple[int, float]:
        """Return how many of the tasks have ended, and the seconds between their ends."""
        with _connect(self.url) as connection:
            row = connection.execute(ENDED, [task_ids]).fetchone()
        return (row[0], float(row[1] or 0)) if row else (0, 0.0)


@contextmanager
def open_database(dsn: str | None) -> Generator[ResultDatabase]:
    """Create a database on the server at *dsn*, or on a throw-away server.

    If the role may not create a database, the one that *dsn* names is used. Raises
    UnusableOption if the server cannot be reached or started.
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
            yield ResultDatabase(url, admin, unit, note)
        else:
            yield ResultDatabase(url.set(database=name), admin, unit)


def _start_server(stack: ExitStack) -> ThrowawayServer:
    counting = {"shared_preload_libraries": "pg_stat_statements"}
    try:
        with suppress(ServerStartError):  # this PostgreSQL may lack contrib modules
            return stack.enter_context(throwaway_postgres(settings=counting))
        return stack.enter_context(throwaway_postgres())
    except ServerStartError as error:
        raise UnusableOption(str(error)) from None


def _parse(dsn: str) -> URL:
    try:
        url = make_url(dsn.removeprefix("db+"))
    except ArgumentError:
        url = None
    if url is None or not url.drivername.startswith("postgres"):
        raise UnusableOption(
            "--dsn: not a PostgreSQL URL such as postgresql://user@host/db"
        )
    return url


def _connect(url: URL) -> Admin:
    try:
        return psycopg.connect(
            url.set(drivername="postgresql").render_as_string(hide_password=False),
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT,
        )
    except psycopg.Error as error:
        raise UnusableOption(f"--dsn: {' '.join(str(error).split())}") from None


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
