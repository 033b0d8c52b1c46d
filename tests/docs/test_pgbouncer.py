"""A real PgBouncer in transaction mode."""

import pytest

from tests.support.pgbouncer import needs_pgbouncer, running_pgbouncer

from .reader import Reader

PAGE = "docs/how-to/pgbouncer.md"

pytestmark = needs_pgbouncer


@pytest.fixture
def empty_dsn(dsn: str) -> str:
    """A database that has the tables: the pooler hides who creates them."""
    return dsn


def test_pooler(reader: Reader) -> None:
    """The client polls, and is notified when it has a direct address."""
    with running_pgbouncer(reader.dsn, "transaction") as bouncer:
        reader.replaced["postgresql://app@pgbouncer:6432/app"] = bouncer.dsn
        reader.replaced["postgresql://app@db/app"] = reader.dsn
        reader.follow()
