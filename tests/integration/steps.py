"""The steps of these tests: a client waits, a task runs and ends."""

import asyncio
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from anyio import to_thread
from celery import Celery, states
from celery.app.task import Context

from aioabort import AbortClient
from aioabort.worker.agent.agent import agent_for
from aioabort.worker.run import Run
from tests.support.waiting import until

#: Counts the connections of aioabort's.
CONNECTIONS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'aioabort'
"""


def new_ids(number: int) -> list[str]:
    """Return so many ids that no task has."""
    return [str(uuid4()) for _ in range(number)]


async def end(
    app: Celery, task_id: str, result: Any, state: str = states.SUCCESS
) -> None:
    """Store a result, or another state, as a worker does."""
    await to_thread.run_sync(app.backend.store_result, task_id, result, state)


async def listening(client: AbortClient) -> None:
    """Return when *client* receives notifications."""
    await until(lambda: client.health().mode == "notify")


async def are_awaited(client: AbortClient, number: int = 1) -> None:
    """Return when *client* has so many waiters."""
    await until(lambda: client.health().waiters == number)


async def waiting_for(client: AbortClient, task_id: str) -> "asyncio.Task[Any]":
    """Return a waiter of the task whose first query has found no result."""
    waiting = asyncio.create_task(client.wait(task_id))
    async with aclosing(client.watch(task_id)) as snapshots:
        await anext(snapshots)
    assert not waiting.done()
    return waiting


def start_run(app: Celery, task_id: str | None = None) -> Run:
    """Begin a run as a pool's thread does, and return when it has been checked."""
    run = Run(
        Context(id=task_id or str(uuid4()), hostname="worker@host"), agent_for(app)
    )
    run.supervisor.watch(run)
    run.supervisor.wait_for_first_poll(run)
    return run


def end_run(run: Run, state: str = states.SUCCESS) -> None:
    """End a run as a pool's thread does."""
    run.mark_ended(state)
    run.supervisor.report_end(run)
