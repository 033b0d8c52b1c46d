"""Watching over the runs of this process: what PostgreSQL says of them, and to it.

All of it runs on the agent's loop. While PostgreSQL is away the runs go on with what
they know, and what is to be reported waits.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Never, TypeVar

from anyio import create_task_group, fail_after
from celery import states

from aioabort import telemetry
from aioabort.exceptions import StoreUnavailable
from aioabort.postgres.connection import Link, connect
from aioabort.postgres.errors import driver_errors
from aioabort.postgres.listener import keep_listening, until_lost
from aioabort.postgres.results import ResultTables, open_results
from aioabort.postgres.store import Store, open_store
from aioabort.reconnect import Connectivity, keep_running
from aioabort.records import TaskRow
from aioabort.settings import Settings
from aioabort.switching import switching_soon
from aioabort.threads import one_wake_up
from aioabort.watcher import SLOWER_WHEN_NOTIFIED, Watcher, steady
from aioabort.worker.kills import Kills
from aioabort.worker.reports import Reports
from aioabort.worker.run import Run

ASK_TIMEOUT = 5.0

#: Runs here that one notification names, from which on it may be one of several.
MANY = 100

#: In an outage, the runs that end are kept to be settled after it, up to this many.
MOST_RUNS = 10_000

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")


class Monitor:
    """The runs of this process, and the one connection that watches over them."""

    def __init__(self, settings: Settings, kills: Kills) -> None:
        self._settings = settings
        self._kills = kills
        self._store: Store | None = None
        self._connected = asyncio.Event()
        self._connectivity = Connectivity("aioabort worker", settings.poll_interval)
        self._watcher = Watcher(steady(settings.poll_interval))
        self._reports = Reports()
        self._runs: dict[str, list[Run]] = {}
        self._results: ResultTables | None = None
        #: Set when a run is watched for the first time: until then nobody listens.
        self._has_begun = asyncio.Event()
        self._suspect = asyncio.Event()

    def begin(self, run: Run) -> None:
        """Watch *run* from now on; its first look is made at once."""
        self._runs.setdefault(run.task_id, []).append(run)
        self._watcher.watch(run.task_id)
        self._has_begun.set()
        if self._connectivity.trouble is not None:
            run.looked.set()

    def end(self, run: Run) -> None:
        """Tell clients that *run* is over, and settle its request at the next look.

        A request that came too late for the task to see was still made before the
        result was stored, so one more look finds it.
        """
        if run.outcome is not None:
            own = () if run.is_announced else (run.task_id,)
            for task_id in (*own, *run.followers):
                self._reports.done(task_id)
        if run.outcome is None or len(self._watcher) > MOST_RUNS:
            self._forget(run)
        elif run.aborted:
            self._watcher.hint((run.task_id,))
        else:
            self._watcher.defer(run.task_id)

    async def end_now(self, run: Run) -> None:
        """Do all that the end of *run* asks for; raises StoreError if that has to wait."""
        self.end(run)
        self._connectivity.raise_trouble()
        store = await self._connected_store()
        await self._look(store, [run.task_id])
        await self._reports.send(store)

    def saw(self, run: Run) -> None:
        """Record that the task noticed its request."""
        self._reports.seen(run)

    async def ask(self, task_id: str) -> TaskRow | None:
        """Return the row of a task that need not run here, if it was asked to stop."""
        self._connectivity.raise_trouble()
        store = await self._connected_store()
        return (await store.observe([task_id])).get(task_id)

    async def on_results(self, act: Callable[[ResultTables], Awaitable[T]]) -> T:
        """Return what *act* does with Celery's tables, over the connection.

        While PostgreSQL is away, waits some seconds for it to come back.
        """
        await self._connected_store()
        results = self._results
        if results is None:
            raise StoreUnavailable("PostgreSQL is away: the connection was closed")
        try:
            with switching_soon():
                return await act(results)
        except StoreUnavailable:
            if results is self._results:
                # Of a server that has gone silent, nothing else might tell. Whoever
                # tries again waits for the next connection.
                self._disconnect()
                self._suspect.set()
            raise

    async def store(
        self,
        task_id: str,
        values: Mapping[str, Any],
        size: int,
        run: Run | None,
        *,
        is_fresh: bool,
    ) -> None:
        """Store a state of the task; if it starts *run* here, that is watched from now on.

        The same statement tells whether the run is to stop.
        """
        if run is not None and run not in self._runs.get(task_id, ()):
            self._runs.setdefault(task_id, []).append(run)
            self._watcher.watch_from_now(task_id)
            self._has_begun.set()
        try:
            stored = await self.on_results(
                lambda results: results.store(task_id, values, size, is_fresh=is_fresh)
            )
        except BaseException:
            self._watcher.hint((task_id,))
            raise
        if values["status"] in states.READY_STATES:
            for ended in self._runs.get(task_id, ()):
                ended.is_announced = True
            self._reports.done(task_id)
        if run is None:
            return
        if stored.is_stored:
            rows = {} if stored.row.request is None else {task_id: stored.row}
            self._take([task_id], rows, set())
        else:
            # It is aborted, or had ended before: there is more to it.
            self._watcher.hint((task_id,))

    async def request(self, task_id: str) -> None:
        """Ask the task to stop, and tell the workers."""
        store = await self._connected_store()
        await store.request([task_id])
        await store.hint_workers([task_id])

    async def _connected_store(self) -> Store:
        if self._store is None:
            self._raise_if_refused()
            with driver_errors(), fail_after(ASK_TIMEOUT):
                await self._connected.wait()
        if self._store is None:
            self._raise_if_refused()
            raise StoreUnavailable("PostgreSQL is away: the connection was closed")
        return self._store

    def _raise_if_refused(self) -> None:
        if not isinstance(self._connectivity.trouble, StoreUnavailable):
            self._connectivity.raise_trouble()

    async def run(self) -> Never:
        """Watch and report, for ever."""
        await keep_running(self._period, self._connectivity, self._on_lost)

    async def drain(self) -> None:
        """Settle and report what ended, once, before the connection is closed."""
        if self._store is not None:
            ended = [
                task_id
                for task_id, runs in self._runs.items()
                if any(run.has_ended for run in runs)
            ]
            if ended:
                await self._look(self._store, ended)
            await self._reports.send(self._store)

    async def _period(self) -> None:
        """Work over one connection, until it is lost."""
        async with connect(self._settings.listen_dsn) as link:
            store = await open_store(link, self._settings)
            # Shows missing rights now, rather than at the first task.
            await store.observe([])
            if self._settings.stores_results:
                self._results = await open_results(link, self._settings)
            self._suspect.clear()
            self._store = store
            self._connected.set()
            self._connectivity.recovered()
            async with create_task_group() as group:
                group.start_soon(until_lost, link)
                group.start_soon(self._until_suspect)
                group.start_soon(self._listen, link, store)
                group.start_soon(self._watcher.run, partial(self._look, store))
                group.start_soon(self._reports.keep_sending, store)
                group.start_soon(self._kills.keep_killing, store, self._runs)

    async def _listen(self, link: Link, store: Store) -> None:
        """Listen if that is possible; until then and otherwise, poll more often."""
        telemetry.mode("worker", "poll")
        await self._has_begun.wait()
        if self._settings.notify:
            await keep_listening(
                link,
                self._settings.listen_dsn,
                store.request_channel,
                self._on_hint,
                self._on_listening,
            )

    def _on_hint(self, task_ids: list[str] | None) -> None:
        """Look at those of *task_ids* that run here; at all that do if they are many.

        More requests than one notification names are committed before the first of
        these. Looked at by name, those of the first one would stop, and their threads
        store results, before the others are heard of: they would wait for a turn
        among all those.
        """
        if task_ids is not None and len(self._runs.keys() & task_ids) >= MANY:
            self._watcher.hint(self._runs)
        else:
            self._watcher.on_hint(task_ids)

    async def _until_suspect(self) -> None:
        """Raise StoreUnavailable when a statement of a task's own has failed."""
        await self._suspect.wait()
        raise StoreUnavailable("PostgreSQL is away: a statement failed")

    def _on_listening(self, refusal: str | None) -> None:
        telemetry.mode("worker", "notify" if refusal is None else "poll")
        interval = self._settings.poll_interval
        if refusal is None:
            interval *= SLOWER_WHEN_NOTIFIED
        else:
            logger.info("aioabort worker: polling only, as %s", refusal)
        self._watcher.pace(steady(interval))
        # Whatever was requested before we listened sent its notification to nobody.
        self._watcher.hint_all()

    def _on_lost(self) -> None:
        telemetry.mode("worker", "poll")
        self._disconnect()
        if not isinstance(self._connectivity.trouble, StoreUnavailable):
            # Whoever waits for the connection is told of the refusal, and waits no more.
            self._connected.set()
        for runs in self._runs.values():
            for run in runs:
                run.looked.set()

    def _disconnect(self) -> None:
        self._store = self._results = None
        self._connected.clear()

    @telemetry.timed("worker")
    async def _look(self, store: Store, task_ids: list[str]) -> None:
        # A run that ends while the statement is under way is not settled by it: the
        # request may have been made after the statement's snapshot.
        ended = {
            run
            for task_id in task_ids
            for run in self._runs.get(task_id, ())
            if run.has_ended
        }
        with switching_soon():
            rows = await store.observe(task_ids)
        rows.update(await _adopt(store, rows))
        self._take(task_ids, rows, ended)

    def _take(
        self, task_ids: list[str], rows: dict[str, TaskRow], ended: set[Run]
    ) -> None:
        """Tell the runs of *task_ids* what was found; settle those that had *ended*."""
        with one_wake_up():
            for task_id in task_ids:
                for run in list(self._runs.get(task_id, ())):
                    row = rows.get(task_id)
                    run.observe(row)
                    if run in ended:
                        self._settle(run, row)
                    elif run.aborted and row is not None and row.kill_in is not None:
                        self._kills.plan(run, row.kill_in)

    def _settle(self, run: Run, row: TaskRow | None) -> None:
        request = row.request if row is not None else None
        if run.outcome is not None and request is not None and request.is_pending:
            self._reports.outcome(request, run.outcome, run.ended_at)
            if run.is_lost:
                self._reports.lost(run.task_id)
        self._forget(run)

    def _forget(self, run: Run) -> None:
        self._kills.forget(run)
        runs = self._runs.get(run.task_id, [])
        # A time limit is a signal, which may come before the run could be watched.
        if run in runs:
            runs.remove(run)
        if not runs:
            self._runs.pop(run.task_id, None)
            self._watcher.unwatch(run.task_id)


async def _adopt(store: Store, rows: dict[str, TaskRow]) -> dict[str, TaskRow]:
    """Make requests of the ABORTED states that others wrote, before they are lost."""
    foreign = [task_id for task_id, row in rows.items() if row.request is None]
    if not foreign:
        return {}
    await store.request(foreign)
    return await store.observe(foreign)
