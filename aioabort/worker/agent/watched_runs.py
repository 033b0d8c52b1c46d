"""The runs of this process, and what PostgreSQL says about their abort requests."""

import asyncio
import logging
from collections.abc import Iterable
from functools import partial
from itertools import chain
from typing import Final, Never

from celery import Celery

from aioabort.batching import BatchSender
from aioabort.concurrency.loop_thread import batch_wakeups
from aioabort.concurrency.switch_interval import short_switch_interval
from aioabort.exceptions import StoreBusy, StoreError
from aioabort.halving import failures, in_parts
from aioabort.models import TaskRow
from aioabort.poller import Poller
from aioabort.postgres.request_store import RequestStore
from aioabort.settings import Settings
from aioabort.telemetry import instruments
from aioabort.worker.agent.foreign_aborts import ForeignAborts
from aioabort.worker.agent.kill_scheduler import KillScheduler
from aioabort.worker.agent.outcome_reporter import OutcomeReporter
from aioabort.worker.run import Run

logger: logging.Logger = logging.getLogger(__name__)

#: If a notification names so many runs of this process, others may follow it.
MANY = 100

#: Runs that end during an outage are kept until their requests are settled, up to so
#: many.
MOST_RUNS = 10_000


class WatchedRuns:
    """Runs by task id, from their start until their abort requests are settled.

    A task id may have several runs: a redelivery can overlap with the run before it.
    """

    def __init__(
        self,
        poller: Poller,
        reporter: OutcomeReporter,
        kills: KillScheduler,
        settings: Settings,
    ) -> None:
        # Made here, in the caller's thread: it may import.
        self._instruments = instruments()
        self._poller: Final = poller
        self._reporter: Final = reporter
        self._kills: Final = kills
        self._runs: Final[dict[str, list[Run]]] = {}
        #: Tasks in the state ABORTED, which another program wrote without a request.
        self._foreign: Final[dict[str, None]] = {}
        self._adoptions: Final = BatchSender(settings.timing.report_gap)
        self._patience: Final = settings.timing.batch_patience
        #: Finds these tasks where the results are not in PostgreSQL.
        self.foreign_aborts: Final = ForeignAborts(settings, self._apply_foreign)
        #: Runs whose result this process has stored, and notified their waiters of.
        self._announced: Final[set[Run]] = set()

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def apps(self) -> set[Celery]:
        """The apps of the runs."""
        apps = {run.app for runs in self._runs.values() for run in runs}
        return {app for app in apps if app is not None}

    def add(self, run: Run) -> None:
        """Watch *run*, and query its abort request now."""
        self._runs.setdefault(run.task_id, []).append(run)
        self._poller.add(run.task_id)

    def add_queried(self, run: Run) -> None:
        """Watch *run*, whose abort request the caller is querying already."""
        if run not in self._runs.get(run.task_id, ()):
            self._runs.setdefault(run.task_id, []).append(run)
            self._poller.add_already_queried(run.task_id)

    def query_soon(self, task_id: str) -> None:
        """Query *task_id* at once, if it is watched."""
        self._poller.poll_now((task_id,))

    def query_notified(self, task_ids: list[str] | None) -> None:
        """Query the runs that a notification names; all runs if it names many.

        The requests of a mass abort are all committed before the first of their
        notifications arrives. If only the runs in that one were queried, they would
        stop and their threads would store results, and this loop would compete with
        those threads before it could read the next notification.
        """
        if task_ids is not None and len(self._runs.keys() & task_ids) >= MANY:
            self._poller.poll_now(self._runs)
        else:
            self._poller.on_notification(task_ids)

    def end(self, run: Run) -> None:
        """Notify the waiters of *run*, and settle its abort request at the next query.

        A request that came too late for the task was still committed before the result,
        so one more query finds it.
        """
        if run.outcome is not None and run not in self._announced:
            self._reporter.add_finished(run.task_id)
        self._reporter.add_followers(run.followers, run.followers_outcome)
        if run.outcome is None or len(self._poller) > MOST_RUNS:
            self._remove(run)
        elif run.aborted:
            self._poller.poll_now((run.task_id,))
        else:
            self._poller.poll_with_next(run.task_id)

    def announce_result(self, task_id: str) -> None:
        """Notify the waiters of *task_id*, whose result is stored: its run need not."""
        self._announced.update(self._runs.get(task_id, ()))
        self._reporter.add_finished(task_id)

    def running(self, task_id: str) -> list[Run]:
        """Return the runs of the task that have not ended."""
        return [run for run in self._runs.get(task_id, ()) if not run.has_ended]

    def ended(self) -> list[Run]:
        """Return the runs that have ended and are not settled."""
        runs = chain.from_iterable(self._runs.values())
        return [run for run in runs if run.has_ended]

    def stop_waiting(self) -> None:
        """Let every task start whose start waits for its first query."""
        for task_id in self._runs:
            self._let_start(task_id)

    def _let_start(self, task_id: str) -> None:
        for run in self._runs.get(task_id, ()):
            run.first_poll_done.set()

    async def query(self, store: RequestStore, task_ids: list[str]) -> None:
        """Query *task_ids* in one statement, and pass the rows on to their runs."""
        ended = self._ended_of(task_ids)
        with self._instruments.polling("worker"), short_switch_interval():
            answers = await in_parts(task_ids, store.read_aborts)
        rows = {id_: row for part in answers.results for id_, row in part.items()}
        foreign = {task_id for task_id, row in rows.items() if row.request is None}
        if foreign:
            self._adopt_soon(foreign)
        for task_id, error in answers.failed:
            self._give_up(task_id, error)
        if not store.has_results:
            foreign |= self._check_elsewhere(task_ids, rows, ended)
        if foreign:
            task_ids = [task_id for task_id in task_ids if task_id not in foreign]
        self.apply(task_ids, rows, ended)

    def _check_elsewhere(
        self, task_ids: Iterable[str], rows: dict[str, TaskRow], ended: set[Run]
    ) -> set[str]:
        """Look for foreign aborts in the result backend; return what to wait for."""
        apps = {
            task_id: run.app
            for task_id in task_ids
            if task_id not in rows
            for run in self.running(task_id)
            if run.app is not None
        }
        ended = {run for run in ended if run.task_id in apps}
        if apps and self.foreign_aborts.check(apps, ended):
            return set(apps)
        return set()

    def _apply_foreign(
        self, task_ids: Iterable[str], aborted: set[str], ended: set[Run]
    ) -> None:
        if aborted:
            self._adopt_soon(aborted)
        self.apply([each for each in task_ids if each not in aborted], {}, ended)

    def _adopt_soon(self, task_ids: Iterable[str]) -> None:
        # To add a request may wait for locks, which must not delay other tasks.
        self._foreign.update(dict.fromkeys(task_ids))
        self._adoptions.wake()

    async def adopt_always(self, store: RequestStore) -> Never:
        """Call ``adopt()`` after each query that finds a foreign abort, for ever."""
        hasty = store.with_patience(self._patience)
        await self._adoptions.run(partial(self.adopt, hasty))

    async def adopt(self, store: RequestStore) -> None:
        """Add abort requests for ABORTED states that other programs wrote.

        celery.contrib.abortable writes only that state, which Celery's next write of a
        state replaces.
        """
        foreign = [*self._foreign]
        if not foreign:
            return
        failed = await failures(
            foreign, store.request_aborts, while_busy=self._patience
        )
        for task_id, error in failed:
            logger.debug("aioabort worker: the abort of %s waits: %s", task_id, error)
            if isinstance(error, StoreBusy):
                foreign.remove(task_id)
                self._let_start(task_id)
                asyncio.get_running_loop().call_later(
                    self._patience, self._adoptions.wake
                )
        for task_id in foreign:
            self._foreign.pop(task_id, None)
        ended = self._ended_of(foreign)
        self.apply(foreign, await store.read_aborts(foreign), ended)

    def _ended_of(self, task_ids: Iterable[str]) -> set[Run]:
        # A run that ends during a query is not settled by it: its request may have been
        # committed after the query's snapshot was taken.
        return {
            run
            for task_id in task_ids
            for run in self._runs.get(task_id, ())
            if run.has_ended
        }

    def apply(
        self, task_ids: Iterable[str], rows: dict[str, TaskRow], ended: set[Run]
    ) -> None:
        """Pass *rows* on to the runs of *task_ids*; settle the runs that had *ended*."""
        with batch_wakeups():
            for task_id in task_ids:
                for run in list(self._runs.get(task_id, ())):
                    row = rows.get(task_id)
                    run.apply_poll(row)
                    if run in ended:
                        self._settle(run, row)
                    elif run.aborted and row is not None and row.kill_in is not None:
                        self._kills.schedule(run, row.kill_in)

    def _give_up(self, task_id: str, error: StoreError) -> None:
        """Stop watching the runs of *task_id*: each query of it would be refused."""
        logger.warning(
            "aioabort worker: task %s runs, but an abort of it cannot arrive: %s",
            task_id,
            error,
        )
        for run in list(self._runs.get(task_id, ())):
            run.apply_poll(None)
            self._remove(run)

    def _settle(self, run: Run, row: TaskRow | None) -> None:
        request = row.request if row is not None else None
        if run.outcome is not None and request is not None and request.is_pending:
            outcome = run.outcome_beside(row.state if row is not None else None)
            self._reporter.add_outcome(request, outcome or run.outcome, run.ended_at)
            if run.ended_without_result:
                self._reporter.add_lost_result(run.task_id)
        if run.is_lost:
            self._reporter.add_followers(run.followers, run.followers_outcome)
        self._remove(run)

    def _remove(self, run: Run) -> None:
        self._kills.cancel(run)
        self._announced.discard(run)
        runs = self._runs.get(run.task_id, [])
        # A soft time limit may have interrupted the thread before ``add()``.
        if run in runs:
            runs.remove(run)
        if not runs:
            self._runs.pop(run.task_id, None)
            self._poller.remove(run.task_id)
