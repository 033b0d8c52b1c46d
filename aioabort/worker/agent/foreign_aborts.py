"""Finds tasks that another program has set to ABORTED in a backend outside PostgreSQL.

Flower and celery.contrib.abortable write that state and nothing else.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Never

from celery import Celery

from aioabort.batching import BatchSender
from aioabort.exceptions import StoreError
from aioabort.external.blocking_reader import BlockingReader
from aioabort.external.opening import open_reader
from aioabort.external.readings import (
    Reading,
    ResultReader,
    unreadable,
    why_unreadable,
)
from aioabort.halving import in_parts
from aioabort.models import ABORTED
from aioabort.reconnect import Connectivity
from aioabort.settings import Settings
from aioabort.worker.run import Run


@dataclass(slots=True)
class Check:
    """Running tasks without an abort request, whose states are to be read."""

    #: The app of each task.
    apps: dict[str, Celery] = field(default_factory=dict)
    #: Runs of these tasks that had ended before their requests were queried.
    ended: set[Run] = field(default_factory=set)


class ForeignAborts:
    """Reads the states of running tasks from the result backends of their apps."""

    def __init__(
        self,
        settings: Settings,
        on_read: Callable[[Iterable[str], set[str], set[Run]], None],
    ) -> None:
        """*on_read* gets the tasks that were read, the aborted ones, and ended runs."""
        self._timing: Final = settings.timing
        self._on_read: Final = on_read
        self._connectivity: Final = Connectivity(
            "aioabort worker", settings.poll_interval
        )
        self._connectivity.server = "Celery's result backend"
        self._check = Check()
        self._sender: Final = BatchSender(0.0)
        #: None for a backend that this process can never read.
        self._readers: Final[dict[Celery, ResultReader | None]] = {}

    def check(self, apps: dict[str, Celery], ended: set[Run]) -> bool:
        """Read the states of the tasks soon; return whether to wait for that.

        While the backend is away, no task waits: it starts without this check.
        """
        self._check.apps.update(apps)
        self._check.ended.update(ended)
        self._sender.wake()
        return self._connectivity.trouble is None

    async def run(self) -> Never:
        """Read the states of the tasks that ``check()`` gets, for ever."""
        async with AsyncExitStack() as stack:
            self._readers.clear()
            await self._sender.run(partial(self._read, stack))

    async def _read(self, stack: AsyncExitStack) -> None:
        check, self._check = self._check, Check()
        if not check.apps:
            # Read together with the check before. Nothing shows that an outage is over.
            return
        aborted: set[str] = set()
        try:
            for app in set(check.apps.values()):
                task_ids = [key for key, its in check.apps.items() if its is app]
                reader = await self._reader(app, stack)
                if reader is not None:
                    aborted |= await self._find_aborted(reader, task_ids)
        except StoreError as error:
            self._connectivity.lost(error)
        else:
            self._connectivity.recovered()
        self._on_read(check.apps, aborted, check.ended)

    async def _find_aborted(
        self, reader: ResultReader, task_ids: Sequence[str]
    ) -> set[str]:
        # Tasks wait for this read before they start, for start_timeout at most.
        timeout = self._timing.start_timeout / 2

        async def read(part: Sequence[str]) -> dict[str, Reading]:
            return await reader.read(part, timeout)

        answers = await in_parts(task_ids, read)
        return {
            task_id
            for readings in answers.results
            for task_id, reading in readings.items()
            if isinstance(reading, dict) and reading["status"] == ABORTED
        }

    async def _reader(self, app: Celery, stack: AsyncExitStack) -> ResultReader | None:
        if app not in self._readers:
            blocking = BlockingReader(app, "aioabort-states")
            stack.callback(blocking.stop)
            try:
                backend = await blocking.open_backend()
            except Exception as error:
                raise unreadable(error) from error
            reader = None
            if why_unreadable(backend) is None:
                reader = await stack.enter_async_context(
                    open_reader(backend, blocking, self._timing)
                )
            self._readers[app] = reader
        return self._readers[app]
