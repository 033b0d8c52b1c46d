"""PostgreSQL's queue of notifications was full, for the sake of somebody else."""

from collections.abc import Callable, Iterator

import psycopg
import pytest
from anyio import fail_after
from celery import Celery

from aioabort.exceptions import StoreError
from aioabort.postgres.connection import connect
from aioabort.postgres.hints import decode_hint
from aioabort.postgres.pool import open_pool
from aioabort.postgres.store import open_store
from aioabort.settings import read_settings
from aioabort.testing.postgres import LaunchError, throwaway_postgres

MakeApp = Callable[..., Celery]

#: In a transaction for each, or the queue would take all of them or none.
FLOOD = """
    DO $$ BEGIN
        LOOP PERFORM pg_notify('junk', '{}'); COMMIT; END LOOP;
    END $$
"""


@pytest.fixture
def small_queue_dsn() -> Iterator[str]:
    """A server whose queue can be filled, which is possible since PostgreSQL 17."""
    try:
        with throwaway_postgres(settings={"max_notify_queue_pages": "64"}) as server:
            yield server.dsn()
    except LaunchError as error:
        if "max_notify_queue_pages" not in str(error):
            raise
        pytest.skip("before PostgreSQL 17 the queue has 8 GB, whatever is configured")


async def test_notifications_come_again(
    small_queue_dsn: str, make_app: MakeApp
) -> None:
    """When who listened in an open transaction has gone, hints arrive again.

    PostgreSQL itself would refuse every NOTIFY from then on, for ever.
    """
    settings = read_settings(make_app(small_queue_dsn))
    hints: list[list[str] | None] = []
    async with (
        open_pool(settings.dsn, max_size=2) as pool,
        connect(settings.dsn) as link,
    ):
        store = await open_store(pool, settings)
        await link.listen(
            store.request_channel,
            lambda *notice: hints.append(decode_hint(notice[3])),
        )
        with psycopg.connect(small_queue_dsn) as sleeper:
            sleeper.execute("LISTEN junk")
            sleeper.commit()
            sleeper.execute("SELECT 1")
            with psycopg.connect(small_queue_dsn, autocommit=True) as other:
                for size in (7_900, 10):
                    with pytest.raises(psycopg.OperationalError, match="NOTIFY queue"):
                        other.execute(FLOOD.format("x" * size))
            with pytest.raises(StoreError, match="NOTIFY queue"):
                await store.hint_workers(["x" * 100])

        await store.hint_workers(["task"])

        with fail_after(10):
            while ["task"] not in hints:
                await link.fetch("SELECT 1")
