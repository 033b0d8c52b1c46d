"""The two libraries under comparison, each used from asyncio as well as it can be."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from anyio import to_thread
from celery.contrib.abortable import AbortableAsyncResult
from celery.exceptions import TimeoutError as CeleryTimeoutError

from aioabort import AbortClient, TaskAborted
from aioabort.demo.ledger import Entry, until
from aioabort.demo.project import ORIGINALS, OURS, AnyTask, app

_Result = AbortableAsyncResult[Any] if TYPE_CHECKING else AbortableAsyncResult


class Library(Protocol):
    """How tasks are sent, aborted and awaited."""

    name: str

    async def send(
        self, task: str, *args: object, countdown: float | None = None
    ) -> str:
        """Publish *task* and return its id."""
        ...

    async def abort(self, task_id: str) -> None:
        """Ask the task to stop."""
        ...

    async def wait(self, task_id: str) -> Any:
        """Return the task's value when it has ended."""
        ...

    async def ended(self, task_id: str, entry: Entry) -> bool:
        """Return when the task has ended; whether that was before its body began."""
        ...


class Original:
    """celery.contrib.abortable; all of it blocks, so it is called in threads."""

    name = "celery.contrib.abortable"

    async def send(
        self, task: str, *args: object, countdown: float | None = None
    ) -> str:
        """Publish *task* and return its id."""
        return await _publish(ORIGINALS[task], args, countdown)

    async def abort(self, task_id: str) -> None:
        """Ask the task to stop."""
        result = _Result(task_id, app=app)
        await to_thread.run_sync(result.abort)

    async def wait(self, task_id: str) -> Any:
        """Return the task's value when it has ended."""
        result = _Result(task_id, app=app)
        while True:
            # A thread cannot be cancelled: for a short time only, or Ctrl-C would wait.
            with suppress(CeleryTimeoutError):
                return await to_thread.run_sync(partial(result.get, timeout=1.0))

    async def ended(self, task_id: str, entry: Entry) -> bool:  # noqa: ARG002
        """Return when the body is over; it always runs.

        The ledger tells. A ``get()`` for each run would poll the database, and slow
        down what is to be compared.
        """
        await until(lambda: entry.stopped)
        return False


class Ours:
    """aioabort."""

    name = "aioabort"

    def __init__(self, client: AbortClient) -> None:
        self._client = client

    async def send(
        self, task: str, *args: object, countdown: float | None = None
    ) -> str:
        """Publish *task* and return its id."""
        return await _publish(OURS[task], args, countdown)

    async def abort(self, task_id: str) -> None:
        """Ask the task to stop."""
        await self._client.abort(task_id, requested_by="the demo")

    async def wait(self, task_id: str) -> Any:
        """Return the task's value when it has ended, or raise TaskAborted."""
        return await self._client.wait(task_id)

    async def ended(self, task_id: str, entry: Entry) -> bool:  # noqa: ARG002
        """Return when the task has ended; whether that was before its body began."""
        try:
            await self.wait(task_id)
        except TaskAborted:
            return True
        return False


#: By the names that the command line uses.
LIBRARIES = {"celery": Original.name, "aioabort": Ours.name}


@asynccontextmanager
async def open_library(name: str) -> AsyncGenerator[Library]:
    """Have one of the LIBRARIES ready for the time of the block."""
    if name == Original.name:
        yield Original()
        return
    async with AbortClient(app) as client:
        yield Ours(client)


async def _publish(
    task: AnyTask, args: tuple[object, ...], countdown: float | None
) -> str:
    options: dict[str, Any] = {} if countdown is None else {"countdown": countdown}
    publish = partial(task.apply_async, args, **options)
    return (await to_thread.run_sync(publish)).id
