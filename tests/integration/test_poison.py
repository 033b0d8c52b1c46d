"""What one task brings along does not keep a worker from watching the others."""

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from anyio import fail_after, to_thread
from celery import Celery
from celery.app.task import Context
from celery.app.trace import build_tracer

from aioabort import AbortableTask, AbortClient, current_token
from aioabort.postgres.store import Store
from aioabort.worker.agent import agent_for, stop_agents
from aioabort.worker.run import Run
from tests.integration.steps import until

if TYPE_CHECKING:
    import asyncpg

MakeApp = Callable[..., Celery]

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


@pytest.fixture(autouse=True)
def no_agents() -> Iterator[None]:
    """Each test starts agents of its own."""
    yield
    stop_agents()


def start_run(app: Celery) -> Run:
    """Begin a run as a pool's thread does."""
    run = Run(Context(id=str(uuid4()), hostname="worker@host"), agent_for(app))
    run.supervisor.begin(run)
    run.supervisor.wait_for_look(run)
    return run


@pytest.mark.parametrize("task_id", ["a\0b", "\ud800", "x" * 8_000], ids=ascii)
async def test_an_id_that_no_database_can_hold(
    dsn: str, make_app: MakeApp, store: Store, task_id: str
) -> None:
    """Its task runs, unwatched, and the abort of another one arrives meanwhile.

    Closes: every look at all running tasks fails for the sake of that one id.
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
        await store.request([other.task_id])

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
    store: Store,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Clients look later then; the worker goes on watching, over the same connection.

    one run ends | NOTIFY fails | a request for the other | it is seen
    """
    await database.execute(REFUSE_TO_NOTIFY)
    caplog.set_level(logging.DEBUG, "aioabort")
    app = make_app(dsn, aioabort_poll_interval=0.05)
    ending, running = [await to_thread.run_sync(start_run, app) for _ in range(2)]
    ending.end("SUCCESS")
    ending.supervisor.end(ending)
    await until(lambda: "no notification was sent" in caplog.text)
    await store.request([running.task_id])
    await until(lambda: running.aborted)

    assert "trying again" not in caplog.text


async def test_workers_are_told_when_notifications_work_again(
    dsn: str,
    make_app: MakeApp,
    database: "asyncpg.Connection[Any]",
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A hint that could not be sent is sent again, and the worker need not poll.

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
