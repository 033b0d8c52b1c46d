"""``doctor`` tries what it vouches for, and names what stands in the way."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner, Result

from aioabort.cli.group import main
from tests.integration.conftest import Stranger
from tests.support.apps import MakeApp
from tests.support.databases import NewDatabase, query

COUNT = """
    SELECT (SELECT count(*) FROM celery_taskmeta),
           (SELECT count(*) FROM aioabort_request)
"""


def doctor(app: Celery, *options: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *options], obj=SimpleNamespace(app=app))


def problems(app: Celery) -> list[str]:
    """Return the problems that doctor prints; its exit code says whether it has any."""
    result = doctor(app)
    lines = [line for line in result.stdout.splitlines() if line.startswith("BAD")]
    assert result.exit_code == (1 if lines else 0), result.output
    return lines


def test_the_table_is_shown(app: Celery, dsn: str) -> None:
    """Schema, table and oid, by which two processes can be compared."""
    [(oid,)] = query(dsn, "SELECT 'aioabort_request'::regclass::oid")
    result = doctor(app)
    name = '"public"."aioabort_request"'
    assert f"ok   the table {name} exists (oid {oid})" in result.stdout
    [view] = json.loads(doctor(app, "--json").stdout)["views"]
    assert (view["schema"], view["table"], view["oid"]) == ("public", name, oid)


@pytest.mark.parametrize("backend", ["db+postgresql+psycopg", "aioabort+postgresql"])
def test_what_it_tries_is_rolled_back(app: Celery, dsn: str, backend: str) -> None:
    """An abort is tried with either backend, and no row is left."""
    app.conf.result_backend = dsn.replace("postgresql", backend, 1)
    result = doctor(app)
    assert "works, and was rolled back" in result.stdout
    assert result.exit_code == 0
    assert query(dsn, COUNT) == [(0, 0)]


def drop_sequence(_role: str) -> str:
    return "DROP SEQUENCE task_id_sequence"


def use_up_sequence(_role: str) -> str:
    return "SELECT setval('task_id_sequence', 2147483647)"


def drop_index(_role: str) -> str:
    return "ALTER TABLE celery_taskmeta DROP CONSTRAINT celery_taskmeta_task_id_key"


def make_read_only(role: str) -> str:
    return f"ALTER ROLE {role} SET default_transaction_read_only = on"


@pytest.mark.parametrize(
    ("breaks", "text"),
    [
        (drop_sequence, 'relation "public.task_id_sequence" does not exist'),
        (use_up_sequence, "integer out of range"),
        (drop_index, "a unique index on task_id is missing"),
        (make_read_only, "cannot execute INSERT in a read-only transaction"),
    ],
)
def test_an_abort_that_fails(
    dsn: str,
    stranger: Stranger,
    make_app: MakeApp,
    breaks: Callable[[str], str],
    text: str,
) -> None:
    """Every abort fails although the tables are there, with all privileges."""
    query(dsn, f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {stranger.role}")
    query(dsn, f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {stranger.role}")
    app = make_app(stranger.dsn(dsn))
    assert problems(app) == []
    query(dsn, breaks(stranger.role))
    [line] = problems(app)
    assert f"an abort by role {stranger.role!r} fails: " in line
    assert text in line


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_another_isolation_level(
    database_setting: Callable[[str, str], None], app: Celery, level: str
) -> None:
    """Statements that meet fail there, which one abort on its own does not show."""
    database_setting("default_transaction_isolation", level)
    [line] = problems(app)
    assert f" runs {level} transactions by default" in line


@pytest.fixture
def database_setting(dsn: str) -> Callable[[str, str], None]:
    """Changes a setting of the database, for sessions that begin later."""
    [(name,)] = query(dsn, "SELECT current_database()")

    def change(setting: str, value: str) -> None:
        query(dsn, f"ALTER DATABASE {name} SET {setting} = '{value}'")

    return change


def test_a_second_table(app: Celery, dsn: str) -> None:
    """A table that another process may use instead is a problem, until it is dropped."""
    query(dsn, "CREATE SCHEMA web")
    query(dsn, "CREATE TABLE web.aioabort_request (LIKE aioabort_request)")
    [line] = problems(app)
    assert "schema 'web' has a table of abort requests, too" in line
    query(dsn, "DROP TABLE web.aioabort_request")
    assert problems(app) == []


def test_the_table_of_another_app(app: Celery, dsn: str, make_app: MakeApp) -> None:
    """Beside a result table of its own, or where the settings name schemas, all is well."""
    query(dsn, "CREATE SCHEMA other")
    query(dsn, "CREATE TABLE other.aioabort_request (LIKE aioabort_request)")
    named = make_app(dsn, database_table_schemas={"task": "public"})
    assert problems(named) == []
    query(dsn, "CREATE TABLE other.celery_taskmeta (LIKE celery_taskmeta)")
    assert problems(app) == []


def test_another_role_listens(dsn: str, stranger: Stranger, make_app: MakeApp) -> None:
    """Workers use aioabort_listen_dsn: its role is examined as well."""
    query(dsn, f"GRANT SELECT ON celery_taskmeta, aioabort_request TO {stranger.role}")
    app = make_app(dsn, aioabort_listen_dsn=stranger.dsn(dsn))
    [line] = problems(app)
    assert f"an abort by role {stranger.role!r} fails: permission denied" in line
    assert "ok   aioabort_listen_dsn leads to the same table" in doctor(app).stdout


def test_another_database_is_listened_to(
    dsn: str, make_app: MakeApp, new_database: NewDatabase
) -> None:
    """Both databases and both tables are named."""
    with new_database() as other:
        found: list[Any] = problems(make_app(dsn, aioabort_listen_dsn=other))
    name = other.rpartition("/")[2].partition("?")[0]
    assert any(
        'aioabort_listen_dsn leads to "public"."aioabort_request" (oid ' in line
        and repr(name) in line
        for line in found
    )
