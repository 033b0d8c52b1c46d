"""What looks like an outage again and again, and what looks like one and is none."""

import logging
from typing import Any, TypeAlias

import asyncpg
import pytest
from anyio import fail_after, to_thread
from celery import Celery

from aioabort import AbortClient
from aioabort.postgres.request_store import RequestStore
from aioabort.reconnect import Backoff
from tests.integration.steps import end_run, listening, start_run
from tests.support.waiting import NEVER_POLLED, until

Database: TypeAlias = "asyncpg.Connection[Any]"

END_OURS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'aioabort'
"""


async def set_default(database: Database, setting: str, value: str) -> None:
    """Set *setting* for the sessions of this database that begin later."""
    name = await database.fetchval("SELECT current_database()")
    await database.execute(f"ALTER DATABASE {name} SET {setting} = '{value}'")


async def test_a_server_that_refuses_to_write_is_left_alone(
    app: Celery,
    store: RequestStore,
    database: Database,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each connection works until an outcome is to be recorded: the delays grow.

    aborted, has seen it | read-only | connect, poll, refused | connect, poll, refused |
    ... | another task is aborted | writes again | recorded
    """
    caplog.set_level(logging.INFO, "aioabort.reconnect")
    delays: list[float] = []
    next_delay = Backoff.next_delay

    def record(self: Backoff) -> float:
        if self._longest == 0.25:
            delays.append(self._next)
        return next_delay(self)

    monkeypatch.setattr(Backoff, "next_delay", record)
    app.conf.aioabort_poll_interval = 0.25
    first, second = [await to_thread.run_sync(start_run, app) for _ in range(2)]
    await store.request_aborts([first.task_id, second.task_id])
    await until(lambda: first.aborted and second.aborted)
    third = await to_thread.run_sync(start_run, app)
    await set_default(database, "default_transaction_read_only", "on")
    await database.execute(END_OURS)
    assert first.is_aborted()
    end_run(first)
    await until(lambda: len(delays) >= 6)
    # While it is so, aborts are seen.
    await database.execute(
        "INSERT INTO aioabort_request (task_id, expires_at) VALUES ($1, now())",
        third.task_id,
    )
    await until(lambda: third.aborted)
    await set_default(database, "default_transaction_read_only", "off")

    async def outcome() -> str | None:
        return await database.fetchval(
            "SELECT outcome FROM aioabort_request WHERE task_id = $1", first.task_id
        )

    assert await until(outcome) == "returned"
    await until(lambda: caplog.records[-1].levelno == logging.INFO)
    assert delays[4:6] == [0.25, 0.25]
    # PostgreSQL may have answered between the end of the first connection and the
    # first refusal: then there are two outages, and two ends.
    levels = [record.levelname for record in caplog.records]
    assert levels in (["WARNING", "INFO"], ["WARNING", "INFO"] * 2), caplog.text


async def test_an_idle_session_timeout_is_no_outage(
    dsn: str,
    app: Celery,
    store: RequestStore,
    database: Database,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Connections that listen are idle on purpose: the server does not end them.

    worker and client listen | the server ends an idle session that began later |
    notifications still arrive
    """
    await set_default(database, "idle_session_timeout", "200ms")
    app.conf.aioabort_poll_interval = NEVER_POLLED
    async with AbortClient(app) as client:
        await listening(client)
        run = await to_thread.run_sync(start_run, app)
        other = await asyncpg.connect(dsn)
        await until(other.is_closed)
        assert client.health().mode == "notify"
        await store.request_aborts([run.task_id])

        async def is_told() -> bool:
            await store.notify_workers([run.task_id])
            return run.aborted

        await until(is_told)
        with fail_after(15):
            assert (await client.abort("id")).answer == "requested"
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING], caplog.text
