"""PostgreSQL's queue of notifications, full: every NOTIFY fails."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psycopg
import pytest

from aioabort.testing import postgres as launcher

#: The settings of a server whose queue can be filled in a second.
SMALL_QUEUE = {"max_notify_queue_pages": "64"}

#: One transaction for each notification, or the queue would take all of them or none.
FLOOD = """
    DO $$ BEGIN
        LOOP PERFORM pg_notify('junk', '{}'); COMMIT; END LOOP;
    END $$
"""


@cache
def postgres_version() -> int:
    """Return the major version of the PostgreSQL that the tests start."""
    try:
        programs = launcher._programs(Path(), account="")
    except launcher.ServerStartError:
        # The tests that need it say why it cannot be started.
        return 999
    shown = subprocess.check_output([programs / "postgres", "--version"], text=True)
    return launcher._version_of(Path(shown))[0]


#: Before PostgreSQL 17 the queue always has 8 GB.
with_small_queue = pytest.mark.only_if(postgres_version() >= 17)


@contextmanager
def full_queue(dsn: str) -> Iterator[None]:
    """Fill the queue, which stays full until the block ends.

    A session that listens, and then stays in a transaction, keeps PostgreSQL from
    removing what is in the queue.
    """
    with psycopg.connect(dsn) as sleeper:
        sleeper.execute("LISTEN junk")
        sleeper.commit()
        sleeper.execute("SELECT 1")
        with psycopg.connect(dsn, autocommit=True) as other:
            # The second size fills what the first one leaves.
            for size in (7_900, 10):
                with pytest.raises(psycopg.OperationalError, match="NOTIFY queue"):
                    other.execute(FLOOD.format("x" * size).encode())
        yield
