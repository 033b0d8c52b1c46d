"""Awaiting the results of tasks: of one task, and of many as they end."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, Final, cast

from anyio import CancelScope, move_on_after
from celery import Celery

from aioabort.client.connections import Connections
from aioabort.client.decoding import value_of
from aioabort.client.validation import check_text
from aioabort.client.waiters import WAKE_BATCH, Ending, Waiter
from aioabort.exceptions import AioabortError, WaitTimeout
from aioabort.halving import in_parts
from aioabort.models import TaskRow
from aioabort.poller import BATCH_SIZE
from aioabort.settings import read_settings
from aioabort.timing import check_timeout

#: The reason of an abort request by a cancelled wait, if the caller gives none.
CANCELLED_WAIT: Final = "the wait for its result was cancelled"

logger: logging.Logger = logging.getLogger(__name__)

#: The event loop references its asyncio tasks only weakly.
_aborts: Final[set["asyncio.Task[None]"]] = set()


class ResultAwaiter:
    """Reads and awaits the rows and values of tasks, for one client."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def read_row(self, task_id: str) -> TaskRow:
        """Return the task's row of this moment; an empty one for an unknown task."""
        rows = await self._connections.results.read_snapshots([task_id])
        return rows.get(task_id) or TaskRow(task_id=task_id)

    async def wait(self, task_id: str, timeout: float | None) -> Any:
        """Return the task's value when it has ended, or raise the error that ended it."""
        timeout = check_timeout(timeout)
        self._connections.results.check_readable()
        if timeout is not None and timeout <= 0:
            current = await self.read_row(task_id)
            row = current if current.is_finished else None
        else:
            row = await self._connections.waiters.wait_for_end(task_id, timeout)
        if row is None:
            raise self.timed_out(task_id, timeout)
        return self.value_of(row)

    async def gather(
        self, task_ids: Sequence[str], timeout: float | None, *, return_exceptions: bool
    ) -> list[Any]:
        """Return the values of the tasks, in order, when all have ended."""
        values: list[Any] = [None] * len(task_ids)
        async with aclosing(self.as_completed(task_ids, timeout)) as endings:
            async for index, ending in endings:
                try:
                    values[index] = self.value_of(ending)
                except Exception as error:
                    if not return_exceptions:
                        raise
                    values[index] = error
        return values

    async def as_completed(
        self, task_ids: Sequence[str], timeout: float | None
    ) -> AsyncGenerator[tuple[int, Ending]]:
        """Yield the index and the ending of each of *task_ids*, in the order they end.

        Raises WaitTimeout after *timeout* seconds.
        """
        timeout = check_timeout(timeout)
        self._connections.results.check_readable()
        if timeout is not None and timeout <= 0:
            found = self._read_ended(task_ids)
        else:
            found = self._wait_for_ends(task_ids, timeout)
        missing = dict.fromkeys(range(len(task_ids)))
        async with aclosing(found) as endings:
            async for index, ending in endings:
                del missing[index]
                yield index, ending
        for index in missing:
            raise self.timed_out(task_ids[index], timeout)

    def value_of(self, ending: Ending) -> Any:
        """Return the value of a task that has ended, or raise the error that ended it."""
        if isinstance(ending, Exception):
            raise ending
        return value_of(self._connections.results.decode(ending))

    def timed_out(
        self,
        task_id: str,
        timeout: float | None,
        error_class: type[WaitTimeout] = WaitTimeout,
    ) -> WaitTimeout:
        """Return the error of a wait that has timed out."""
        trouble = self._connections.waiters.connectivity.trouble
        error = error_class(task_id, timeout or 0, str(trouble or ""))
        error.__cause__ = trouble
        return error

    async def _read_ended(
        self, task_ids: Sequence[str]
    ) -> AsyncGenerator[tuple[int, Ending]]:
        """Yield the tasks that have ended already."""
        for first in range(0, len(task_ids), BATCH_SIZE):
            batch = task_ids[first : first + BATCH_SIZE]
            read = self._connections.results.read_snapshots
            answers = await in_parts(batch, read)
            refusals = dict(answers.failed)
            rows = {id_: row for part in answers.results for id_, row in part.items()}
            for index, task_id in enumerate(batch, first):
                row = rows.get(task_id)
                if task_id in refusals:
                    yield index, refusals[task_id]
                elif row is not None and row.is_finished:
                    yield index, row

    async def _wait_for_ends(
        self, task_ids: Sequence[str], timeout: float | None
    ) -> AsyncGenerator[tuple[int, Ending]]:
        """Yield the tasks that end within *timeout* seconds, as they end."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        ended: asyncio.Queue[int] = asyncio.Queue()
        async with self._connections.waiters.waiting_for(task_ids) as waiters:
            for index, task_id in enumerate(task_ids):
                waiters[task_id].add_done_callback(partial(_put, ended, index))
            for count in range(1, len(task_ids) + 1):
                if not count % WAKE_BATCH:
                    # If thousands have ended, get() never suspends.
                    await asyncio.sleep(0)
                try:
                    async with asyncio.timeout_at(deadline):
                        index = await ended.get()
                except TimeoutError:
                    return
                yield index, _ending_of(waiters[task_ids[index]])


@asynccontextmanager
async def aborting_on_cancel(
    abort: Callable[..., Awaitable[object]], reason: str | None, app: Celery
) -> AsyncGenerator[None]:
    """Call *abort* if the block is cancelled, then let the cancellation go on.

    The call may delay the cancellation for ``abort_on_cancel_timeout`` seconds (of
    *app*'s Timing); a failure is logged. Raises InvalidRequest, and does not enter the
    block, if *reason* cannot be stored.
    """
    check_text("reason", reason)
    abort = partial(abort, reason=reason or CANCELLED_WAIT)
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.get_running_loop().create_task(_abort(abort, app))
        _aborts.add(task)
        task.add_done_callback(_aborts.discard)
        # Without the shield, an enclosing cancel scope would cancel this wait again
        # and again. A second task.cancel() ends the wait, and the abort goes on.
        with CancelScope(shield=True):
            await asyncio.wait([task])
        raise


async def _abort(abort: Callable[[], Awaitable[object]], app: Celery) -> None:
    timeout = read_settings(app).timing.abort_on_cancel_timeout
    with move_on_after(timeout) as scope:
        try:
            await abort()
        except AioabortError as error:
            logger.warning("A cancelled wait could not abort its task: %s", error)
    if scope.cancelled_caught:
        logger.warning("A cancelled wait could not abort its task within %g s", timeout)


def _put(queue: asyncio.Queue[int], index: int, _: object) -> None:
    queue.put_nowait(index)


def _ending_of(waiter: Waiter) -> Ending:
    error: Any = waiter.exception()
    ending: Any = error or waiter.result()
    return cast("Ending", ending)
