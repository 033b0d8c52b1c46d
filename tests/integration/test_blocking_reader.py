"""Result backends whose client library never renews the connection of a thread."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from anyio import fail_after
from celery import Celery, states
from celery.backends.base import BaseBackend

from aioabort import AbortClient, StoreError, StoreUnavailable
from tests.integration.steps import are_awaited
from tests.support.apps import MakeApp
from tests.support.waiting import BOUND, until

_connections = threading.local()


class Connection:
    """A connection that is closed when its thread has ended, as Django's are."""

    def __init__(self, dsn: str) -> None:
        self.link = psycopg.connect(dsn, autocommit=True, application_name="orm")

    def __del__(self) -> None:
        self.link.close()


class ThreadsBackend(BaseBackend):
    """Reads PostgreSQL as Django's ORM does: a connection a thread, and never another."""

    #: What the next reads raise, to stand for a bug.
    bug: Exception | None = None

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        if self.bug is not None:
            raise self.bug
        connection = getattr(_connections, "mine", None)
        if connection is None:
            connection = _connections.mine = Connection(self.app.conf.aioabort_dsn)
        statement = "SELECT state FROM results WHERE task_id = %s"
        row = connection.link.execute(statement, [task_id]).fetchone()
        return {"status": row[0] if row else states.PENDING, "result": None}


@pytest.fixture
def app(empty_dsn: str, make_app: MakeApp) -> Celery:
    """An app whose results are in a table that only its backend knows."""
    with psycopg.connect(empty_dsn) as connection:
        connection.execute("CREATE TABLE results (task_id text, state text)")
    return make_app(
        empty_dsn,
        aioabort_dsn=empty_dsn,
        result_backend=f"{__name__}:{ThreadsBackend.__name__}",
        aioabort_poll_interval=0.1,
    )


@pytest.fixture
async def client(app: Celery) -> AsyncIterator[AbortClient]:
    async with AbortClient(app) as client:
        yield client


def finish(dsn: str, task_id: str) -> None:
    """Store the end of the task."""
    with psycopg.connect(dsn) as connection:
        insert = "INSERT INTO results VALUES (%s, 'SUCCESS')"
        connection.execute(insert, [task_id])


def close_connections(dsn: str) -> None:
    """Close what the backend has opened, as a restart of the server does."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'orm' AND datname = current_database()"
        )


async def test_a_closed_connection_is_renewed(
    client: AbortClient, empty_dsn: str, task_id: str
) -> None:
    """The thread whose connection is closed makes no more reads: another one does.

    wait() | the connection is closed | a read fails | task ends: value
    """
    waiting = asyncio.create_task(client.wait(task_id))
    await client.snapshot(task_id)
    close_connections(empty_dsn)
    await until(lambda: client.health().last_error)
    finish(empty_dsn, task_id)
    with fail_after(BOUND):
        assert await waiting is None
    await until(lambda: client.health().is_connected)
    assert (await client.snapshot(task_id)).state == "SUCCESS"


async def test_a_client_keeps_one_thread(
    client: AbortClient, empty_dsn: str, task_id: str
) -> None:
    """The threads that have failed end."""
    for _ in range(5):
        await client.snapshot(task_id)
        close_connections(empty_dsn)
        with pytest.raises(StoreUnavailable, match="setting result_backend"):
            await client.snapshot(task_id)
    await client.snapshot(task_id)
    name = "aioabort-results"
    await until(lambda: sum(each.name == name for each in threading.enumerate()) == 1)


async def test_a_bug_is_no_outage(
    client: AbortClient, task_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later read would fail, too: the wait ends with the reason."""
    waiting = asyncio.create_task(client.wait(task_id))
    await are_awaited(client)
    monkeypatch.setattr(ThreadsBackend, "bug", AssertionError("a bug"))
    with fail_after(BOUND), pytest.raises(StoreError, match="a bug") as caught:
        await waiting
    assert not isinstance(caught.value, StoreUnavailable)


async def test_an_outage_is_awaited(
    client: AbortClient, empty_dsn: str, task_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may pass by itself ends no wait."""
    monkeypatch.setattr(ThreadsBackend, "bug", ConnectionRefusedError("away"))
    waiting = asyncio.create_task(client.wait(task_id))
    await until(lambda: "away" in (client.health().last_error or ""))
    assert not waiting.done()
    finish(empty_dsn, task_id)
    monkeypatch.setattr(ThreadsBackend, "bug", None)
    with fail_after(BOUND):
        assert await waiting is None
