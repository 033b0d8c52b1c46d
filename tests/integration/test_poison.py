"""One odd task does not keep a worker from watching the others."""

import logging
from typing import TYPE_CHECKING, Any

import pytest
from anyio import fail_after, to_thread
from celery.app.trace import build_tracer

from aioabort import AbortableTask, AbortClient, current_token
from aioabort.postgres.request_store import RequestStore
from tests.integration.steps import start_run
from tests.support.apps import MakeApp
from tests.support.waiting import until

if TYPE_CHECKING:
    import asyncpg


#: NOTIFY as it is when its queue is full.
REFUSE_TO_NOTIFY = """
    CREATE SCHEMA full_queue;
    CREATE FUNCTION full_queue.pg_notify(text, text) RETURNS void LANGUAGE plpgsql
    AS $$
    BEGIN
        RAISE EXCEPTION 'too many notifications in the NOTIFY queue'
            USING ERRCODE = 'program_limit_exceeded';
    END $$;
    DO $$
    BEGIN
        EXECUTE format('ALTER DATABASE %I SET search_path = full_queue, pg_catalog, '
            'public', current_database());
    END $$;
"""


@pytest.mark.parametrize("task_id", ["a\0b", "\ud800", "x" * 8_000], ids=ascii)
async def test_an_id_that_no_database_can_hold(
    dsn: str, make_app: MakeApp, store: RequestStore, task_id: str
) -> None:
    """Its task runs, unwatched, and the abort of another one arrives meanwhile.

    Closes: every query of all running tasks fails because of that one id.
    """
    app = make_app(
        dsn, result_backend="cache+memory://", aioabort_dsn=dsn, aioabort_notify=False
    )
    app.conf.aioabort_poll_interval = 0.05
    other = await to_thread.run_sync(start_run, app)
    seen: list[Any] = []

    @app.task(base=AbortableTask, shared=False, name="strange", ignore_result=True)
    def strange() -> None:
        """See that the other one is aborted while this one runs."""
        seen.append(current_token().is_aborted())
        seen.append(other.wait(10))

    async def ask() -> None:
        await store.request_aborts([other.task_id])

    def trace() -> None:
        request = {"id": task_id, "hostname": "worker@host", "is_eager": False}
        build_tracer(strange.name, strange, app=app)(task_id, (), {}, request)

    await ask()
    with fail_after(15):
        await to_thread.run_sync(trace)

    assert seen == [False, True]


async def test_a_notification_that_is_refused(
    dsn: str,
    make_app: MakeApp,
    database: "asyncpg.Connection[Any]",
    store: RequestStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Clients find the end by a poll; the worker keeps its connection.

    one run ends | NOTIFY fails | a request for the other | it is seen
    """
    await database.execute(REFUSE_TO_NOTIFY)
    caplog.set_level(logging.DEBUG, "aioabort")
    app = make_app(dsn, aioabort_poll_interval=0.05)
    ending, running = [await to_thread.run_sync(start_run, app) for _ in range(2)]
    ending.mark_ended("SUCCESS")
    ending.supervisor.report_end(ending)
    await until(lambda: "no notification was sent" in caplog.text)
    await store.request_aborts([running.task_id])
    await until(lambda: running.aborted)

    assert "trying again" not in caplog.text


async def test_workers_are_told_when_notifications_work_again(
    dsn: str,
    make_app: MakeApp,
    database: "asyncpg.Connection[Any]",
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A notification that could not be sent is sent again, before any poll.

    NOTIFY fails | requested | it works again | the task sees the request
    """
    caplog.set_level(logging.DEBUG, "aioabort")
    never_polled = make_app(dsn, aioabort_poll_interval=3_600.0)
    run = await to_thread.run_sync(start_run, never_polled)
    await database.execute(REFUSE_TO_NOTIFY)
    async with AbortClient(make_app(dsn, aioabort_poll_interval=0.05)) as client:
        assert (await client.abort(run.task_id)).answer == "requested"
        await until(lambda: "client: no notification was sent" in caplog.text)
        await database.execute("DROP SCHEMA full_queue CASCADE")
        await until(lambda: run.aborted)
