"""What many of these tests do: end a task, wait for something, be one who waits."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from anyio import fail_after, sleep, to_thread
from celery import Celery, states

from aioabort import AbortClient

#: Seconds; whatever takes longer than this will not happen.
BOUND = 20.0


async def end(
    app: Celery, task_id: str, result: Any, state: str = states.SUCCESS
) -> None:
    """Store a result as a worker does."""
    await to_thread.run_sync(app.backend.store_result, task_id, result, state)


async def until(condition: Callable[[], object]) -> None:
    """Return when *condition* holds."""
    with fail_after(BOUND):
        while not condition():
            await sleep(0.01)


async def are_awaited(client: AbortClient, number: int = 1) -> None:
    """Return when so many wait."""
    await until(lambda: client.health().waiters == number)


async def waiting_for(client: AbortClient, task_id: str) -> "asyncio.Task[Any]":
    """Return a task that waits, and has looked for the first time."""
    waiting = asyncio.create_task(client.wait(task_id))
    async with aclosing(client.watch(task_id)) as snapshots:
        await anext(snapshots)
    assert not waiting.done()
    return waiting
