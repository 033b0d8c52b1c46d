"""What runs on the agent's loop: it watches the runs and carries out their calls.

While PostgreSQL is away the tasks run on with the abort requests that are known, and
what is to be recorded waits.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, Never, TypeVar

from anyio import create_task_group
from celery import Celery, states

from aioabort.exceptions import StoreBusy
from aioabort.models import TaskRow
from aioabort.poller import SLOWER_WHEN_NOTIFIED, Poller, steady_pace
from aioabort.postgres.connection import SerialConnection
from aioabort.postgres.listener import keep_listening
from aioabort.postgres.request_store import RequestStore
from aioabort.postgres.result_store import ResultStore
from aioabort.settings import Settings
from aioabort.telemetry import instruments
from aioabort.worker.agent.agent_connection import POLLS, AgentConnection
from aioabort.worker.agent.kill_scheduler import KillScheduler
from aioabort.worker.agent.outcome_reporter import OutcomeReporter
from aioabort.worker.agent.watched_runs import WatchedRuns
from aioabort.worker.handover import UnrecordedEnd
from aioabort.worker.run import Run

logger: logging.Logger = logging.getLogger(__name__)

LISTEN: Final = "listening"

T = TypeVar("T")


class Monitor:
    """Watches the runs of this process over the agent's connection.

    Not thread-safe: ``Agent`` has the loop call every method. The coroutines raise
    StoreError, and StoreUnavailable when PostgreSQL cannot be reached within some
    seconds.
    """

    def __init__(self, settings: Settings, app: Celery) -> None:
        timing = settings.timing
        self._settings: Final = settings
        # Made here, in the caller's thread: it may import.
        self._instruments = instruments()
        self._connection: Final = AgentConnection(settings, app)
        self._poller: Final = Poller(steady_pace(settings.poll_interval))
        self._kills: Final = KillScheduler(app, timing)
        self._reporter: Final = OutcomeReporter(timing)
        self._runs: Final = WatchedRuns(
            self._poller, self._reporter, self._kills, settings
        )
        #: Set by the first run. A process that runs no abortable task does not listen.
        self._has_runs: Final = asyncio.Event()

    async def run(self) -> Never:
        """Watch, record and kill, for ever."""
        await self._connection.run(self._work, self._on_lost)

    def watch(self, run: Run) -> None:
        """Watch *run* from now on, and query its abort request at once."""
        self._runs.add(run)
        self._has_runs.set()
        if self._connection.is_away:
            run.first_poll_done.set()

    def record_seen(self, run: Run) -> None:
        """Record that the task saw its abort request."""
        self._reporter.add_seen(run)

    def end(self, run: Run) -> None:
        """Notify the waiters of *run*, and settle its abort request soon."""
        self._runs.end(run)

    def end_followers(self, task_ids: Iterable[str]) -> None:
        """Notify the waiters of tasks that do not run, and settle their requests."""
        self._reporter.add_followers(task_ids, "too_late")

    async def end_now(self, run: Run) -> None:
        """Do what ``end()`` does before this returns.

        If StoreError is raised, it is done as soon as PostgreSQL answers.
        """
        self._runs.end(run)
        self._connection.raise_trouble()
        store = await self._connection.requests()
        await self._runs.query(store, [run.task_id])
        await self._runs.adopt(store)
        await self._reporter.send(store)

    async def find(self, task_id: str) -> TaskRow | None:
        """Return the row of any task, or None if no abort was requested.

        During an outage this raises the error of the latest attempt at once.
        """
        self._connection.raise_trouble()
        store = await self._connection.requests()
        return (await store.read_aborts([task_id])).get(task_id)

    async def check(self, task_id: str) -> bool:
        """Return whether any task is aborted.

        If the task runs in this process, it sees the abort: one of its threads asks.
        """
        runs = self._runs.running(task_id)
        if not runs:
            row = await self.find(task_id)
            return row is not None and row.is_aborted
        if not any(run.aborted for run in runs):
            self._connection.raise_trouble()
            store = await self._connection.requests()
            await self._runs.query(store, [task_id])
        # All of them see it.
        return True in [run.is_aborted() for run in runs]

    async def request_abort(self, task_id: str) -> None:
        """Add an abort request for the task, and notify the workers."""
        store = await self._connection.requests()
        await store.request_aborts([task_id])
        await store.notify_workers([task_id])

    async def use_results(
        self, use: Callable[[ResultStore], Awaitable[T]], *, size: int = 0
    ) -> T:
        """Return what *use* does with Celery's tables; *size* in bytes may be large."""
        return await self._connection.use_results(use, size=size)

    async def store_result(
        self,
        task_id: str,
        values: Mapping[str, Any],
        size: int,
        run: Run | None,
        *,
        is_fresh: bool,
    ) -> bool:
        """Store a state of the task; return whether it was stored.

        If it is the start of *run*, watch that from now on: the same statement queries
        the abort request of the task.
        """
        if run is not None:
            self._runs.add_queried(run)
            self._has_runs.set()
        try:
            stored = await self._connection.use_results(
                lambda results: results.store_result(
                    task_id, values, size, is_fresh=is_fresh
                ),
                size=size,
            )
        except BaseException:
            self._runs.query_soon(task_id)
            raise
        if values["status"] in states.READY_STATES:
            self._runs.announce_result(task_id)
        if run is None:
            return stored.is_stored
        if stored.is_stored:
            rows = {} if stored.row.request is None else {task_id: stored.row}
            self._runs.apply([task_id], rows, set())
        else:
            # STARTED was not stored: the task is aborted, or had ended before. Only
            # a full query tells which.
            self._runs.query_soon(task_id)
        return stored.is_stored

    async def drain(self) -> None:
        """Settle and record the runs that have ended, before the connection is closed."""
        store = self._connection.open_requests()
        if store is not None:
            if ended := self._runs.ended():
                await self._runs.query(store, [run.task_id for run in ended])
                await self._runs.adopt(store)
            await self._reporter.send(store)

    def unrecorded(self) -> list[UnrecordedEnd]:
        """Return what ``drain()`` has not recorded, once the loop has ended."""
        return self._reporter.unrecorded(self._runs.ended())

    async def _work(self) -> None:
        async with (
            self._connection.opened() as (link, polls, store),
            create_task_group() as group,
        ):
            group.start_soon(self._listen, link, store)
            hasty = polls.with_patience(self._settings.timing.poll_patience)
            group.start_soon(self._poller.run, partial(self._poll, hasty))
            group.start_soon(self._runs.adopt_always, store)
            group.start_soon(self._runs.foreign_aborts.run)
            group.start_soon(self._reporter.run, store, self._connection.proving)
            group.start_soon(self._kills.run, store, self._runs)

    async def _poll(self, store: RequestStore, task_ids: list[str]) -> None:
        """Query *task_ids*; query them again soon if PostgreSQL is busy."""
        try:
            with self._connection.proving(POLLS):
                await self._runs.query(store, task_ids)
        except StoreBusy as error:
            self._connection.delayed(error)
            self._runs.stop_waiting()
            self._poller.poll_now(task_ids)

    async def _listen(self, link: SerialConnection, store: RequestStore) -> None:
        """Listen if that is possible; until then and otherwise, poll more often."""
        self._instruments.mode("worker", "poll")
        await self._has_runs.wait()
        if self._settings.notify:
            self._connection.expect(LISTEN)
            await keep_listening(
                link,
                store.request_channel,
                self._runs.query_notified,
                self._on_listening,
            )

    def _on_listening(self, refusal: str | None) -> None:
        self._instruments.mode("worker", "notify" if refusal is None else "poll")
        self._connection.proved(LISTEN)
        interval = self._settings.poll_interval
        if refusal is None:
            interval *= SLOWER_WHEN_NOTIFIED
        else:
            logger.info("aioabort worker: polling only, as %s", refusal)
        self._poller.set_pace(steady_pace(interval))
        # No notification arrived for the requests that were made before LISTEN.
        self._poller.poll_all_soon()

    def _on_lost(self) -> None:
        self._instruments.mode("worker", "poll")
        self._runs.stop_waiting()
