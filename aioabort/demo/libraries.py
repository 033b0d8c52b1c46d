"""The two libraries that are compared, each used from asyncio as its API allows."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from anyio import to_thread
from celery.contrib.abortable import AbortableAsyncResult
from celery.exceptions import TimeoutError as CeleryTimeoutError

from aioabort import AbortClient, TaskAborted
from aioabort.demo.celery_app import AIOABORT_TASKS, CONTRIB_TASKS, AnyTask, app
from aioabort.demo.ledger import Entry, wait_for

_Result = AbortableAsyncResult[Any] if TYPE_CHECKING else AbortableAsyncResult


class Library(Protocol):
    """Publishes, aborts and awaits tasks."""

    name: str

    async def send(
        self, task: str, *args: object, countdown: float | None = None
    ) -> str:
        """Publish *task* and return its id."""
        ...

    async def abort(self, task_id: str) -> None:
        """Abort the task."""
        ...

    async def wait(self, task_id: str) -> Any:
        """Wait until the task has ended, and return its value."""
        ...

    async def wait_for_end(self, task_id: str, entry: Entry) -> bool:
        """Wait until the task has ended; return True if its body never began."""
        ...


class ContribLibrary:
    """celery.contrib.abortable. All its calls block, so they run in threads."""

    name = "celery.contrib.abortable"

    async def send(
        self, task: str, *args: object, countdown: float | None = None
    ) -> str:
        """Publish *task* and return its id."""
        return await _publish(CONTRIB_TASKS[task], args, countdown)

    async def abort(self, task_id: str) -> None:
        """Abort the task."""
        result = _Result(task_id, app=app)
        await to_thread.run_sync(result.abort)

    async def wait(self, task_id: str) -> Any:
        """Wait until the task has ended, and return its value."""
        result = _Result(task_id, app=app)
        while True:
            # A thread cannot be cancelled: without a short timeout, Ctrl-C would wait.
            with suppress(CeleryTimeoutError):
                return await to_thread.run_sync(partial(result.get, timeout=1.0))

    async def wait_for_end(self, task_id: str, entry: Entry) -> bool:  # noqa: ARG002
        """Wait until the body has ended; it always runs.

        Reads the ledger: a ``get()`` for each run would poll the database, and slow
        down the runs that are compared.
        """
        await wait_for(lambda: entry.stopped)
        return False


class AioabortLibrary:
    """aioabort."""

    name = "aioabort"

    def __init__(self, client: AbortClient) -> None:
        self._client = client

    async def send(
        self, task: str, *args: object, countdown: float | None = None
    ) -> str:
        """Publish *task* and return its id."""
        return await _publish(AIOABORT_TASKS[task], args, countdown)

    async def abort(self, task_id: str) -> None:
        """Abort the task."""
        await self._client.abort(task_id, requested_by="the demo")

    async def wait(self, task_id: str) -> Any:
        """Wait until the task has ended; return its value or raise TaskAborted."""
        return await self._client.wait(task_id)

    async def wait_for_end(self, task_id: str, entry: Entry) -> bool:  # noqa: ARG002
        """Wait until the task has ended; return True if its body never began."""
        try:
            await self.wait(task_id)
        except TaskAborted:
            return True
        return False


#: The libraries by their names on the command line.
LIBRARIES = {"celery": ContribLibrary.name, "aioabort": AioabortLibrary.name}


@asynccontextmanager
async def open_library(name: str) -> AsyncGenerator[Library]:
    """Open one of the LIBRARIES for the duration of the block."""
    if name == ContribLibrary.name:
        yield ContribLibrary()
        return
    async with AbortClient(app) as client:
        yield AioabortLibrary(client)


async def _publish(
    task: AnyTask, args: tuple[object, ...], countdown: float | None
) -> str:
    options: dict[str, Any] = {} if countdown is None else {"countdown": countdown}
    publish = partial(task.apply_async, args, **options)
    return (await to_thread.run_sync(publish)).id
