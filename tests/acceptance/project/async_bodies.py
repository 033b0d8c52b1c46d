"""Tasks whose bodies are coroutines."""

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import anyio
from celery import current_task
from marks import note, until, wait_for

from aioabort import AbortableTask, AbortClient, current_token

PAUSE = 0.002


async def opened(place: str, gate: str) -> None:
    """Return when the test has opened *gate*, and let others run meanwhile."""
    while not await anyio.Path(place, gate).exists():
        await asyncio.sleep(PAUSE)


def define(task: Callable[..., Any]) -> SimpleNamespace:  # noqa: C901, PLR0915
    """Return the tasks of this module for the app whose decorator *task* is."""

    @task
    async def doubling(place: str, number: int) -> int:
        """Return a value."""
        note(place, "body")
        await asyncio.sleep(0)
        return number * 2

    @task
    async def delegating(place: str, number: int) -> int:
        """Have other tasks do the work, twice, and await their values."""
        async with AbortClient(doubling.app) as client:
            sent = await client.send(doubling, place, number)
            twice: int = await sent.wait(30)
        delayed = await doubling.adelay(place, twice)
        value: int = await delayed.wait(30)
        return value

    @task
    async def failing(place: str) -> None:
        """Raise an error."""
        note(place, "body")
        await asyncio.sleep(0)
        raise ValueError("broken")

    @task(bind=True)
    async def retrying(self: AbortableTask, place: str) -> int:
        """Succeed at the second attempt."""
        note(place, "body")
        await asyncio.sleep(0)
        if not self.request.retries:
            raise self.retry(countdown=0)
        return int(self.request.retries)

    @task(bind=True, autoretry_for=(ValueError,), default_retry_delay=0)
    async def autoretrying(self: AbortableTask, place: str) -> int:
        """Succeed at the second attempt, without asking for it."""
        note(place, "body")
        await asyncio.sleep(0)
        if not self.request.retries:
            raise ValueError("broken")
        return int(self.request.retries)

    @task(bind=True)
    async def stopping(self: AbortableTask, place: str) -> None:
        """Stop by the exception, and clean up by awaiting."""
        note(place, "body")
        try:
            while True:
                self.raise_if_aborted()
                await asyncio.sleep(PAUSE)
        finally:
            await asyncio.sleep(PAUSE)
            note(place, "cleaned")

    @task(bind=True, autoretry_for=(Exception,), default_retry_delay=0)
    async def sleeping(self: AbortableTask, place: str) -> None:
        """Be cancelled, and clean up by awaiting."""
        note(place, "body")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            note(place, "cancelled", self.is_aborted())
            raise
        finally:
            await asyncio.sleep(PAUSE)
            note(place, "cleaned")

    @task
    async def grouping(place: str) -> None:
        """Have children that are cancelled and clean up."""

        async def child() -> None:
            note(place, "child")
            try:
                await anyio.sleep(60)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(PAUSE)
                note(place, "cleaned")

        async with anyio.create_task_group() as group:
            group.start_soon(child)
            group.start_soon(child)
            note(place, "body")

    @task
    async def insisting(place: str, times: int) -> str:
        """Swallow so many cancellations."""
        note(place, "body")
        asked = 0
        while asked < times:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                asked += 1
                note(place, "asked")
        return "kept"

    @task(bind=True)
    async def shielding(self: AbortableTask, place: str) -> None:
        """Be cancelled, but not within the shield."""
        with self.abort_token.shield():
            note(place, "body")
            await opened(place, "end")
            note(place, "shield")
        await asyncio.sleep(60)
        note(place, "end of the body")

    @task
    async def blocking(place: str) -> None:
        """Let no other coroutine run."""
        note(place, "body")
        wait_for(place, "end")

    @task
    async def called(place: str) -> list[str | None]:
        """Tell where it comes from."""
        await asyncio.sleep(0)
        request = current_task.request
        note(place, "called", f"{request.parent_id} {request.root_id}")
        return [request.parent_id, request.root_id]

    @task(bind=True)
    async def identifying(self: AbortableTask, place: str) -> dict[str, Any]:
        """Tell what it is, seen from several sides."""
        note(place, "body")

        def seen() -> list[str | None]:
            token = current_token()
            return [self.request.id, current_task.request.id, token.task_id]

        before = seen()
        await asyncio.sleep(PAUSE)
        child = called.delay(place)
        return {
            "before": before,
            "after": seen(),
            "in a thread": await asyncio.to_thread(seen),
            "in a task": await asyncio.create_task(asyncio.to_thread(seen)),
            "child": child.id,
            "threads": [thread.name for thread in threading.enumerate()],
        }

    @task(bind=True)
    def beside(self: AbortableTask, place: str) -> None:
        """Stop by the exception, in no coroutine."""
        note(place, "body")
        until(self.raise_if_aborted)

    return SimpleNamespace(
        doubling=doubling,
        delegating=delegating,
        failing=failing,
        retrying=retrying,
        autoretrying=autoretrying,
        stopping=stopping,
        sleeping=sleeping,
        grouping=grouping,
        insisting=insisting,
        shielding=shielding,
        blocking=blocking,
        called=called,
        identifying=identifying,
        beside=beside,
    )
