"""The fixture of a real PostgreSQL, as users' tests have it."""

import subprocess
import sys
from pathlib import Path

import psycopg

pytest_plugins = ["aioabort.testing.fixtures"]

IN_A_TRANSACTION = """
import psycopg, pytest
pytest_plugins = ["aioabort.testing.fixtures"]
left = []

@pytest.mark.parametrize("number", [1, 2])
def test_isolated(aioabort_dsn, number):
    connection = psycopg.connect(aioabort_dsn)
    connection.execute("CREATE TABLE mine ()")
    left.append(connection)  # open in a transaction when the test ends

def test_databases_are_dropped(aioabort_server):
    with psycopg.connect(aioabort_server) as connection:
        names = connection.execute("SELECT datname FROM pg_database").fetchall()
    assert not [name for [name] in names if name.startswith("aioabort_")]
    for connection in left:
        connection.close()
"""


def test_database_is_real_and_empty(aioabort_dsn: str) -> None:
    """It answers, and has no table."""
    with psycopg.connect(aioabort_dsn) as connection:
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        assert connection.execute(tables).fetchone() == (0,)


async def test_in_a_test_that_has_a_loop(aioabort_dsn: str) -> None:
    """The fixture does not need the loop of the test."""
    async with await psycopg.AsyncConnection.connect(aioabort_dsn) as connection:
        await connection.execute("SELECT 1")


def test_one_database_a_test(tmp_path: Path) -> None:
    """None sees another's tables, and each is dropped, connections or not."""
    (tmp_path / "test_isolated.py").write_text(IN_A_TRANSACTION)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "3 passed" in run.stdout, run.stdout
