"""Another program had filled PostgreSQL's queue of notifications."""

from collections.abc import Iterator

import pytest
from anyio import fail_after

from aioabort.exceptions import StoreError
from aioabort.postgres.connection import connect
from aioabort.postgres.notifications import decode_notification
from aioabort.postgres.pool import open_pool
from aioabort.postgres.request_store import open_request_store
from aioabort.settings import read_settings
from aioabort.testing.postgres import throwaway_postgres
from tests.support.apps import MakeApp
from tests.support.full_queue import SMALL_QUEUE, full_queue, with_small_queue


@pytest.fixture
def small_queue_dsn() -> Iterator[str]:
    """A server whose queue of notifications can be filled."""
    with throwaway_postgres(settings=SMALL_QUEUE) as server:
        yield server.dsn()


@with_small_queue
async def test_notifications_come_again(
    small_queue_dsn: str, make_app: MakeApp
) -> None:
    """After the session that listened in an open transaction, notifications arrive again.

    PostgreSQL itself would refuse every NOTIFY from then on, for ever.
    """
    settings = read_settings(make_app(small_queue_dsn))
    received: list[list[str] | None] = []
    async with (
        open_pool(settings.dsn, 2, settings.timing) as pool,
        connect(settings.dsn, settings.timing) as connection,
    ):
        store = await open_request_store(pool, settings)
        await connection.listen(
            store.request_channel,
            lambda *notice: received.append(decode_notification(notice[3])),
        )
        with (
            full_queue(small_queue_dsn),
            pytest.raises(StoreError, match="NOTIFY queue"),
        ):
            await store.notify_workers(["x" * 100])

        await store.notify_workers(["task"])

        with fail_after(10):
            while ["task"] not in received:
                await connection.fetch("SELECT 1")
