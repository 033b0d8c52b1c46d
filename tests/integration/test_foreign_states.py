"""ABORTED as others write it, outside PostgreSQL: Flower and celery.contrib.abortable.

There is no worker here, but the agent that one has.
"""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from anyio import fail_after, to_thread
from celery import Celery
from celery.app.task import Context
from celery.contrib.abortable import AbortableAsyncResult

from aioabort import AbortClient, AbortRequest
from aioabort.timing import Timing
from aioabort.worker.agent.agent import agent_for
from aioabort.worker.run import Run
from tests.integration.steps import end, end_run
from tests.support.apps import MakeApp
from tests.support.redis_servers import redis_program
from tests.support.waiting import BOUND, NEVER_POLLED, until

# Celery's own backend, with a redis-py that is newer.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex")


@pytest.fixture
def app(empty_dsn: str, external_url: str, make_app: MakeApp) -> Celery:
    """An app whose results are not in PostgreSQL, and whose workers poll often."""
    return make_app(
        empty_dsn,
        aioabort_dsn=empty_dsn,
        result_backend=external_url,
        aioabort_poll_interval=0.05,
    )


async def start(app: Celery, task_id: str) -> Run:
    """Begin a run as a pool's thread does, and return when it has been checked."""
    context = Context(id=task_id, hostname="worker@host")
    run = Run(context, agent_for(app), app)
    run.supervisor.watch(run)
    wait = run.supervisor.wait_for_first_poll
    await to_thread.run_sync(wait, run, abandon_on_cancel=True)
    return run


async def abort_as_flower(app: Celery, task_id: str) -> None:
    """Write ABORTED with Celery's own class, which knows nothing of aioabort."""
    result: AbortableAsyncResult = AbortableAsyncResult(task_id, app=app)
    await to_thread.run_sync(result.abort)


async def test_a_running_task_sees_it(
    app: Celery, client: AbortClient, task_id: str
) -> None:
    """It becomes an abort request, which no state that the task stores can erase."""

    async def request() -> AbortRequest | None:
        return (await client.snapshot(task_id)).request

    run = await start(app, task_id)
    assert not run.is_aborted()
    await abort_as_flower(app, task_id)
    await until(run.is_aborted)
    assert AbortableAsyncResult(task_id, app=app).is_aborted()
    await until(request)
    await end(app, task_id, {"files": 1}, "PROGRESS")
    assert (await client.snapshot(task_id)).state == "ABORTED"
    await end(app, task_id, "value")
    end_run(run)

    async def outcome() -> Any:
        found = await request()
        return found is not None and found.outcome

    assert await until(outcome) == "returned"


async def test_a_queued_task_does_not_begin(app: Celery, task_id: str) -> None:
    """The check before the body reads the state, too."""
    await abort_as_flower(app, task_id)
    run = await start(app, task_id)
    assert run.is_aborted()
    end_run(run)


async def test_of_many_tasks_only_the_aborted_ones_stop(
    app: Celery, client: AbortClient
) -> None:
    """They share a read; a task that has an abort request needs none."""
    runs = await asyncio.gather(*(start(app, f"task-{n}") for n in range(20)))
    await client.abort("task-0")
    await abort_as_flower(app, "task-1")
    await until(lambda: runs[0].is_aborted() and runs[1].is_aborted())
    assert not any(run.is_aborted() for run in runs[2:])
    for run in runs:
        end_run(run)


async def test_a_backend_that_is_away_delays_no_start_and_no_abort(
    empty_dsn: str, make_app: MakeApp, tmp_path: Path
) -> None:
    """Tasks begin without knowing, and their own aborts arrive.

    Redis is away | task begins | abort() | Redis is back: a foreign abort is seen
    """
    with redis_program(tmp_path) as server:
        app = make_app(
            empty_dsn,
            aioabort_dsn=empty_dsn,
            result_backend=server.url,
            aioabort_poll_interval=0.05,
        )
        server.stop()
        first, second = await start(app, "first"), await start(app, "second")
        async with AbortClient(app) as client:
            await client.abort("first")
            await until(first.is_aborted)
            server.start()
            await abort_as_flower(app, "second")
            await until(second.is_aborted)
        end_run(first)
        end_run(second)


async def test_a_known_outage_holds_no_start(
    empty_dsn: str, make_app: MakeApp, tmp_path: Path
) -> None:
    """The next start does not wait for the read that finds out whether it is over.

    Redis is away: a read fails | Redis is there, and frozen | task begins at once
    """
    with redis_program(tmp_path) as server:
        app = make_app(
            empty_dsn,
            aioabort_dsn=empty_dsn,
            result_backend=server.url,
            # With notifications, the agent would read once more when it listens.
            aioabort_notify=False,
            aioabort_poll_interval=NEVER_POLLED,
            aioabort_timing=Timing(start_timeout=4 * BOUND, connect_timeout=4 * BOUND),
        )
        server.stop()
        first = await start(app, "first")
        server.start()
        server.freeze()
        with fail_after(BOUND):
            second = await start(app, "second")
        server.thaw()
        for run in (first, second):
            end_run(run)


async def test_a_frozen_backend_holds_no_start_for_long(
    empty_dsn: str,
    make_app: MakeApp,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The read is given up before the start is, and PostgreSQL is not blamed."""
    with redis_program(tmp_path) as server:
        app = make_app(
            empty_dsn,
            aioabort_dsn=empty_dsn,
            result_backend=server.url,
            aioabort_poll_interval=NEVER_POLLED,
            aioabort_timing=Timing(start_timeout=1.0),
        )
        server.freeze()
        runs = [await start(app, "first"), await start(app, "second")]
        server.thaw()
        for run in runs:
            end_run(run)
    assert "does not answer within 0.5 s" in caplog.text
    assert "starts without knowing" not in caplog.text
