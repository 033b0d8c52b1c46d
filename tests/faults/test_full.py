"""PostgreSQL has no room: for notifications, for rows, at the end of a transaction."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import psycopg
import pytest

from aioabort.testing import postgres as launcher
from tests.support.databases import query
from tests.support.full_queue import full_queue, with_small_queue

from .rounds import Arena, run_round

REFUSE = """
    CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'could not extend file: No space left on device'
            USING ERRCODE = 'disk_full';
    END $$
"""

#: Deferred, it has the COMMIT fail, when every statement before it has succeeded.
AT_COMMIT = """
    CREATE CONSTRAINT TRIGGER refuse AFTER INSERT OR UPDATE ON {}
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()
"""

JUNK = """
    CREATE TABLE junk (text text) WITH (autovacuum_enabled = false) TABLESPACE small
"""
FILL = "INSERT INTO junk SELECT repeat('x', 500) FROM generate_series(1, 100000)"

TABLES = ("aioabort_request", "celery_taskmeta")


@with_small_queue
async def test_notification_queue_full(arena: Arena) -> None:
    """Every NOTIFY fails, because a session listens in a transaction that does not end."""

    async def inject(seconds: float) -> None:
        with full_queue(arena.dsn):
            await anyio.sleep(seconds)

    await run_round(arena, "notification queue full", inject)


async def test_disk_full_at_commit(arena: Arena) -> None:
    """Each COMMIT that writes a request or a result ends in SQLSTATE 53100."""
    query(arena.dsn, REFUSE)

    async def inject(seconds: float) -> None:
        for table in TABLES:
            query(arena.dsn, AT_COMMIT.format(table))
        await anyio.sleep(seconds)
        for table in TABLES:
            query(arena.dsn, f"DROP TRIGGER refuse ON {table}")

    await run_round(arena, "disk full at commit", inject)


async def test_disk_really_full(arena: Arena) -> None:
    """The file system with the requests has no room for another page."""
    with _small_disk(arena.subfolder("small")) as folder:
        query(arena.dsn, f"CREATE TABLESPACE small LOCATION '{folder}'")
        query(arena.dsn, "ALTER TABLE aioabort_request SET TABLESPACE small")

        async def inject(seconds: float) -> None:
            query(arena.dsn, JUNK)
            with pytest.raises(psycopg.OperationalError, match="No space left"):
                # It fails, and keeps the space that it has taken until a VACUUM.
                query(arena.dsn, FILL)
            await anyio.sleep(seconds)
            query(arena.dsn, "DROP TABLE junk")

        try:
            await run_round(arena, "disk really full", inject)
        finally:
            query(arena.dsn, "ALTER TABLE aioabort_request SET TABLESPACE pg_default")
            query(arena.dsn, "DROP TABLE IF EXISTS junk")
            # What the server keeps of dropped tables goes with a checkpoint.
            query(arena.dsn, "CHECKPOINT")
            query(arena.dsn, "DROP TABLESPACE small")


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("to mount a small file system takes root")
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        launcher._change_owner(folder, "nobody")
        yield folder
    finally:
        # Lazily: the server still has files open that it has deleted.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
