"""The process's agent: a thread with one event loop and one connection.

The first abortable task starts it, not an import. A fork inherits neither the thread
nor the connection: the child starts its own agent when it runs its first task.
"""

import asyncio
import atexit
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache, partial
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

import anyio
from celery import Celery, signals

from aioabort.concurrency.gevent import refuse_eventlet
from aioabort.concurrency.loop_thread import CallQueue, LoopEnded, LoopThread
from aioabort.concurrency.per_process import PerProcess
from aioabort.exceptions import StoreError, StoreUnavailable
from aioabort.models import TaskRow
from aioabort.settings import Settings, read_settings
from aioabort.worker.agent.child_exit import keep_sigterm_for_main_thread
from aioabort.worker.agent.monitor import Monitor
from aioabort.worker.handover import handover
from aioabort.worker.run import Run

logger: logging.Logger = logging.getLogger(__name__)

#: Task ids in one line of the log.
MOST_NAMED = 20

T = TypeVar("T")


class Agent:
    """The thread-safe side of a Monitor, which runs on the loop of a thread of its own.

    The methods that take a run are those of its Supervisor.
    """

    def __init__(self, settings: Settings, app: Celery) -> None:
        self.timing: Final = settings.timing
        self.interrupt_signal: Final = settings.interrupt_signal
        self._monitor: Final = Monitor(settings, app)
        self._thread: Final = LoopThread("aioabort-agent", self._main)
        self._reports: Final = CallQueue(self._thread, settings.timing.report_gap)

    def call(self, act: Callable[[Monitor], Awaitable[T]]) -> T:
        """Return the result of *act*, which runs on the agent's loop.

        Raises StoreUnavailable if the process is going down. If a signal handler raises
        in this thread meanwhile, *act* is cancelled.
        """
        try:
            return self._thread.call(partial(act, self._monitor))
        except LoopEnded as error:
            raise StoreUnavailable("The process is going down") from error

    def store_result(
        self,
        task_id: str,
        values: Mapping[str, Any],
        size: int,
        run: Run | None = None,
        *,
        is_fresh: bool = False,
    ) -> bool:
        """Store a state of the task, in *size* bytes; return whether it was stored.

        *run* is given if the state is its start: the run is watched from then on.
        *is_fresh*: the run is no redelivery. Raises StoreError, and StoreUnavailable
        when PostgreSQL cannot be reached within some seconds.
        """
        if run is not None:
            # Before the call: when a signal interrupts it, the run may be watched
            # already, and then its end has to be reported.
            run.mark_watched()
        return self.call(
            lambda monitor: monitor.store_result(
                task_id, values, size, run, is_fresh=is_fresh
            )
        )

    def watch(self, run: Run) -> None:
        """Watch *run*, and query its abort request; returns at once."""
        run.mark_watched()
        try:
            self._thread.post(partial(self._monitor.watch, run))
        except LoopEnded:
            # The process is going down. The abort request, if there is one, stays
            # pending for the worker that runs the task next.
            run.first_poll_done.set()

    def wait_for_first_poll(self, run: Run) -> None:
        """Return when it is known whether *run* is aborted, or cannot be known."""
        timeout = self.timing.start_timeout
        if not run.first_poll_done.wait(timeout):
            logger.warning(
                "aioabort worker: PostgreSQL did not answer within %g s; task %s starts "
                "without knowing whether it is aborted",
                timeout,
                run.task_id,
            )

    def poll_again(self, run: Run) -> TaskRow | None:
        """Query *run* once more and return its row; None if PostgreSQL is away."""
        with suppress(StoreError):
            row = self.call(lambda monitor: monitor.find(run.task_id))
            run.apply_poll(row)
            return row
        return None

    def report_seen(self, run: Run) -> None:
        """Record soon that the task saw its abort request; returns at once."""
        self._report(partial(self._monitor.record_seen, run))

    def report_end(self, run: Run) -> None:
        """Stop watching *run* and record its outcome soon; returns at once."""
        self._report(partial(self._monitor.end, run))

    def report_followers(self, task_ids: Iterable[str]) -> None:
        """Record soon that the tasks do not run, as one before them has failed."""
        self._report(partial(self._monitor.end_followers, task_ids))

    def report_end_now(self, run: Run) -> None:
        """Stop watching *run* and record its outcome before this returns.

        If PostgreSQL is away, the outcome is recorded as soon as it answers.
        """
        with suppress(StoreError):
            self.call(lambda monitor: monitor.end_now(run))

    def stop(self) -> None:
        """Record what is left, close the connection and end the thread.

        The main process gets what cannot be recorded within ``agent_stop_timeout``.
        """
        self._thread.stop(self.timing.agent_stop_timeout)
        if left := handover.write(self._monitor.unrecorded()):
            logger.warning(
                "aioabort worker: stopped before the outcomes of %d tasks were "
                "recorded: %s",
                len(left),
                ", ".join(end.task_id for end in left[:MOST_NAMED]),
            )

    def _report(self, call: Callable[[], None]) -> None:
        try:
            self._reports.put(call)
        except LoopEnded:
            logger.debug("aioabort worker: the agent has stopped", exc_info=True)

    async def _main(self, stopped: asyncio.Event) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._monitor.run)
            await stopped.wait()
            await self._drain()
            group.cancel_scope.cancel()

    async def _drain(self) -> None:
        self._reports.make_calls()
        with anyio.move_on_after(self.timing.agent_stop_timeout / 2):
            # What is left is logged when the thread has ended.
            with suppress(StoreError):
                await self._monitor.drain()


_agents: Final[PerProcess[Settings, Agent]] = PerProcess()
_settings: Final[WeakKeyDictionary[Celery, Settings]] = WeakKeyDictionary()


def agent_for(app: Celery) -> Agent:
    """Return this process's agent for *app*, started if necessary.

    Raises ImproperlyConfigured if the app's configuration or its pool cannot work.
    """
    settings = _settings.get(app)
    if settings is None:
        settings = _settings.setdefault(app, read_settings(app))
    return agent_with(settings, app)


def agent_with(settings: Settings, app: Celery) -> Agent:
    """Return this process's agent with *settings*, started for *app* if necessary."""
    refuse_eventlet()
    return _agents.get(settings, partial(_start_agent, settings, app))


def stop_agents(**_: object) -> None:
    """End the agents of this process; a task that starts later starts a new one.

    It reads the settings anew.
    """
    _settings.clear()
    for agent in _agents.take_all().values():
        agent.stop()


def _start_agent(settings: Settings, app: Celery) -> Agent:
    _stop_with_process()
    return Agent(settings, app)


@cache
def _stop_with_process() -> None:
    atexit.register(stop_agents)
    # A prefork child runs no atexit functions, and sends this signal. The process of
    # the other pools sends the second one, after its last task.
    signals.worker_process_shutdown.connect(stop_agents, weak=False)
    signals.worker_process_shutdown.connect(keep_sigterm_for_main_thread, weak=False)
    signals.worker_shutdown.connect(stop_agents, weak=False)
