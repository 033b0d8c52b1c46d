"""A state machine over everything that may happen to a task, on a real database.

Celery's part is played by its own backend, aioabort's by its store, runs and monitors;
only the loop that would drive a monitor is left out, so that each step is one that the
machine chooses. Each run has a monitor of its own, as each process has.
"""

import asyncio
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from celery import Celery, states
from celery.app.task import Context
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from aioabort import AbortRequest
from aioabort.postgres.request_store import RequestStore, open_request_store
from aioabort.settings import read_settings
from aioabort.timing import Timing
from aioabort.worker.agent.monitor import Monitor
from aioabort.worker.run import Run

EXPIRE = "UPDATE aioabort_request SET expires_at = now() WHERE outcome IS NOT NULL"

ids = st.integers(0, 2)


@dataclass
class Process:
    """A worker's process with one run in it."""

    run: Run
    monitor: Monitor
    is_stored: bool = False


@dataclass
class Task:
    """What the model knows of one id."""

    task_id: str = field(default_factory=lambda: str(uuid4()))
    #: Messages in the queue: whether each was delivered before.
    queue: list[bool] = field(default_factory=list)
    running: Process | None = None
    #: The end that Celery has stored.
    end: tuple[Any, ...] | None = None
    #: Whether a request is in force that no run has ended with.
    is_pending: bool = False
    requests: int = 0
    published: int = 0


class Supervisor:
    """Takes what runs report; the machine says when it is looked at."""

    def __init__(self, monitor: Monitor) -> None:
        self.timing = Timing()
        self.interrupt_signal = signal.SIGURG
        self.watch = monitor.watch
        self.report_seen = monitor.record_seen
        self.report_end = self.report_end_now = monitor.end

    def wait_for_first_poll(self, run: Run) -> None:
        """Do nothing: the machine looks."""

    def poll_again(self, run: Run) -> None:
        """Do nothing: the machine looks."""


class Machine(RuleBasedStateMachine):
    """Requests, runs and cleaning in any order."""

    app: Celery

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._settings = read_settings(self.app)
        self._connection = self._do(asyncpg.connect(self._settings.dsn.url))
        self._store: RequestStore = self._do(
            open_request_store(self._connection, self._settings)
        )
        self._tasks = [Task() for _ in range(3)]

    def teardown(self) -> None:
        """Let everything come to its end, and look at what is recorded."""
        try:
            for task in self._tasks:
                self._drain(task)
            self._audit()
        finally:
            self._do(self._connection.close())
            self._runner.close()

    # What happens.

    @rule(number=ids)
    def publish(self, number: int) -> None:
        """Send the task, or send it again under the same id when it has ended."""
        task = self._tasks[number]
        if not task.queue and task.running is None:
            task.queue.append(False)
            task.published += 1
            if task.end is not None:
                # As ``AsyncResult.forget()``: Celery's row of the run before is gone.
                self._execute("DELETE FROM celery_taskmeta WHERE task_id = $1", task)
                task.end = None

    @rule(numbers=st.sets(ids, min_size=1))
    def request(self, numbers: set[int]) -> None:
        """Ask some tasks to stop, in one statement."""
        tasks = [self._tasks[number] for number in numbers]
        before = {task.task_id: self._row(task) for task in tasks}
        created = self._do(
            self._store.request_aborts([task.task_id for task in tasks], "why")
        )
        for task in tasks:
            if task.end is not None:
                # Promise 2: a finished result is never changed by an abort.
                assert task.task_id not in created
                assert self._row(task) == before[task.task_id]
            else:
                assert (task.task_id in created) == (not task.is_pending)
                task.is_pending = True
                task.requests += task.task_id in created

    @rule(number=ids)
    def start(self, number: int) -> None:
        """Take the message, look, store STARTED, and stop if the task is to stop."""
        task = self._tasks[number]
        if not task.queue or task.running is not None:
            return
        redelivered = task.queue.pop(0)
        monitor = Monitor(self._settings, self.app)
        context = Context(
            id=task.task_id, hostname="w", delivery_info={"redelivered": redelivered}
        )
        run = Run(context, Supervisor(monitor))  # type: ignore[arg-type]
        task.running = Process(run, monitor)
        monitor.watch(run)
        self._look(task)
        # Promise 1: asked before the start, the body never runs.
        if task.is_pending:
            assert run.aborted
        if task.end is None:
            self._write(task, states.STARTED)
        if run.aborted:
            self._honour(task)

    @rule(number=ids)
    def look(self, number: int) -> None:
        """Poll."""
        task = self._tasks[number]
        if task.running is not None and not task.running.run.has_ended:
            self._look(task)
            # Promise 3: a check sees what was committed a poll before it.
            assert task.running.run.aborted or not task.is_pending

    @rule(number=ids)
    def progress(self, number: int) -> None:
        """Report progress, which erases ABORTED from Celery's row."""
        task = self._tasks[number]
        if self._is_in_body(task):
            self._write(task, "PROGRESS")

    @rule(
        number=ids, looks=st.booleans(), state=st.sampled_from(["SUCCESS", "FAILURE"])
    )
    def finish(self, number: int, looks: bool, state: str) -> None:
        """Return or fail, with a check before or without."""
        task = self._tasks[number]
        if self._is_in_body(task):
            assert task.running is not None
            if looks:
                task.running.run.is_aborted()
            self._end(task, state)

    @rule(number=ids)
    def honour(self, number: int) -> None:
        """Look, and stop if the task is to stop."""
        task = self._tasks[number]
        if self._is_in_body(task):
            assert task.running is not None
            if task.running.run.is_aborted():
                self._honour(task)

    @rule(number=ids)
    def retry(self, number: int) -> None:
        """Try again later; one that is to stop ends instead."""
        task = self._tasks[number]
        if not self._is_in_body(task):
            return
        assert task.running is not None
        if task.running.run.is_aborted():
            self._honour(task)
            return
        self._write(task, states.RETRY)
        task.running.run.mark_ended(states.RETRY)
        task.running.monitor.end(task.running.run)
        task.running = None
        task.queue.append(False)

    @rule(number=ids)
    def redeliver(self, number: int) -> None:
        """Kill the process before it acknowledges: the broker delivers again."""
        task = self._tasks[number]
        if task.running is not None:
            task.running = None
            task.queue.append(True)

    @rule(number=ids)
    def settle(self, number: int) -> None:
        """Let a process look at what has ended, and acknowledge it."""
        task = self._tasks[number]
        if task.running is not None and task.running.run.has_ended:
            self._settle(task)

    @rule()
    def expire(self) -> None:
        """Clean up requests that are settled and old."""
        self._do(self._connection.execute(EXPIRE))
        while self._do(self._store.delete_expired(1)):
            pass

    # What always holds.

    @invariant()
    def pending_requests_are_there(self) -> None:
        """Promise 1: whatever else was written, a request that is pending is found."""
        rows = self._do(self._store.read_aborts([task.task_id for task in self._tasks]))
        for task in self._tasks:
            request = self._request(rows, task)
            if task.is_pending:
                assert request is not None
                assert request.is_pending

    @invariant()
    def results_stay(self) -> None:
        """Promise 2: what is finished stays as it is."""
        for task in self._tasks:
            if task.end is not None:
                assert self._row(task) == task.end

    # How it is done.

    def _is_in_body(self, task: Task) -> bool:
        return task.running is not None and not task.running.run.has_ended

    def _look(self, task: Task) -> None:
        assert task.running is not None
        self._do(task.running.monitor._runs.query(self._store, [task.task_id]))

    def _honour(self, task: Task) -> None:
        assert task.running is not None
        run = task.running.run
        run.is_aborted()
        if run.stored_state not in states.READY_STATES:
            self._write(task, states.REVOKED)
        run.mark_honoured()
        self._end(task, states.IGNORED)

    def _end(self, task: Task, state: str) -> None:
        assert task.running is not None
        if state != states.IGNORED and task.end is None:
            self._write(task, state)
        task.running.run.mark_ended(state)
        task.running.monitor.end(task.running.run)

    def _settle(self, task: Task) -> None:
        assert task.running is not None
        self._look(task)
        self._do(task.running.monitor._reporter.send(self._store))
        assert not task.running.monitor._runs
        task.running = None
        task.is_pending = False

    def _drain(self, task: Task) -> None:
        while task.queue or task.running is not None:
            if task.running is None:
                self.start(self._tasks.index(task))
            elif task.running.run.has_ended:
                self._settle(task)
            else:
                self._end(task, states.SUCCESS)

    def _audit(self) -> None:
        rows = self._do(self._store.read_aborts([task.task_id for task in self._tasks]))
        for task in self._tasks:
            request = self._request(rows, task)
            if request is None or not task.published:
                continue
            assert not task.is_pending or not request.is_pending
            if request.outcome == "aborted":
                assert task.end is not None
                assert task.end[0] == states.REVOKED

    def _write(self, task: Task, state: str) -> None:
        result = (
            {"progress": 1} if state not in states.EXCEPTION_STATES else ValueError()
        )
        self.app.backend.store_result(task.task_id, result, state)
        if state in states.READY_STATES:
            task.end = self._row(task)

    def _row(self, task: Task) -> tuple[Any, ...] | None:
        statement = "SELECT status, result, traceback, date_done FROM celery_taskmeta"
        row = self._do(
            self._connection.fetchrow(f"{statement} WHERE task_id = $1", task.task_id)
        )
        return row and tuple(row)

    def _request(self, rows: dict[str, Any], task: Task) -> AbortRequest | None:
        row = rows.get(task.task_id)
        request: AbortRequest | None = row.request if row else None
        return request

    def _execute(self, statement: str, task: Task) -> None:
        self._do(self._connection.execute(statement, task.task_id))

    def _do(self, act: Any) -> Any:
        async def do() -> Any:
            return await act

        return self._runner.run(do())


def test_any_order(
    dsn: str,
    make_app: Callable[..., Celery],
    monkeypatch: pytest.MonkeyPatch,
    pytestconfig: pytest.Config,
) -> None:
    """No order of events loses a request, or changes a result."""
    # Celery would open a connection for each step.
    monkeypatch.setattr(
        "celery.backends.database.session.SessionManager.forked", True, raising=False
    )
    app = make_app(dsn)
    app.backend.session_manager.forked = True
    machine = type("TheMachine", (Machine,), {"app": app})
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=15 if pytestconfig.getoption("quick") else 60,
                stateful_step_count=30,
                derandomize=True,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        # Which Celery keeps for the life of a process.
        for engine in app.backend.session_manager._engines.values():
            engine.dispose()
