"""The process's own thread, with one event loop and one connection.

Started by the first abortable task, never at import. A fork inherits neither the
thread nor the connection: the child starts its own when it runs its first task.
"""

import asyncio
import atexit
import logging
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

import anyio
from celery import Celery, signals

from aioabort import threads
from aioabort.exceptions import StoreError, StoreUnavailable
from aioabort.postgres.results import ResultTables
from aioabort.records import TaskRow
from aioabort.settings import Settings, read_settings
from aioabort.worker.kills import Kills
from aioabort.worker.monitor import Monitor
from aioabort.worker.run import Run

#: How long a task's start may be held up by a server that has gone silent; while it is
#: known to be away, a start is not held up at all.
START_TIMEOUT = 5.0

#: Seconds between two looks at what runs report: so few wake-ups of the loop, however
#: many tasks end. Who awaits one waits for half of it on average.
REPORT_GAP = 0.01

#: A prefork child has about one second to live after its last task.
STOP_TIMEOUT = 0.8

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")


class Agent:
    """What the threads of a process ask for, carried out on one loop of its own."""

    def __init__(self, settings: Settings, kills: Kills) -> None:
        self._monitor: Final = Monitor(settings, kills)
        self._reports: deque[tuple[Callable[[Run], None], Run]] = deque()
        self._is_collecting = False
        self._collect_at = 0.0
        self._stop: Final = asyncio.Event()
        # Made here, it takes what is posted before it runs. To wait until it runs,
        # while the lock below is held, could be a deadlock of two greenlets.
        self._loop: Final = threads.new_event_loop()
        self._thread: Final = threads.start(self._run, "aioabort-agent")

    def begin(self, run: Run) -> None:
        """Watch *run*, and ask whether it is to stop; returns at once."""
        run.is_watched = True
        if not self._post(self._monitor.begin, run):
            run.looked.set()

    def wait_for_look(self, run: Run) -> None:
        """Return when it is known whether *run* was asked to stop, or cannot be."""
        if not run.looked.wait(START_TIMEOUT):
            logger.warning(
                "aioabort worker: PostgreSQL did not answer within %g s; "
                "task %s begins without having asked it",
                START_TIMEOUT,
                run.task_id,
            )

    def look_again(self, run: Run) -> TaskRow | None:
        """Refresh the state of *run* by what is returned, if PostgreSQL can be asked."""
        with suppress(StoreError):
            row = self.ask(run.task_id)
            run.observe(row)
            return row
        return None

    def saw(self, run: Run) -> None:
        """Record that the task noticed its request, soon; returns at once."""
        self._report(self._monitor.saw, run)

    def end(self, run: Run) -> None:
        """Stop watching *run* and report its end, soon; returns at once."""
        self._report(self._monitor.end, run)

    def end_now(self, run: Run) -> None:
        """Stop watching *run* and have its end reported, if PostgreSQL can be asked.

        If it cannot be, that is done as soon as it can.
        """
        with suppress(StoreError):
            self._call(partial(self._monitor.end_now, run))

    def ask(self, task_id: str) -> TaskRow | None:
        """Return what PostgreSQL knows of a request for *task_id*.

        Raises StoreError when it cannot be asked within a few seconds.
        """
        return self._call(partial(self._monitor.ask, task_id))

    def store(
        self,
        task_id: str,
        values: Mapping[str, Any],
        size: int,
        run: Run | None = None,
        *,
        is_fresh: bool = False,
    ) -> None:
        """Store a state of the task, *size* bytes; with *run*, which it starts, watch that.

        *is_fresh*: it is the start of a run that is no redelivery.

        Raises StoreError, and StoreUnavailable when PostgreSQL cannot be reached within
        a few seconds.
        """
        if run is not None:
            run.is_watched = True
        self._call(
            partial(self._monitor.store, task_id, values, size, run, is_fresh=is_fresh)
        )

    def request(self, task_id: str) -> None:
        """Ask the task to stop; raises what ``store()`` raises."""
        self._call(partial(self._monitor.request, task_id))

    def on_results(self, act: Callable[[ResultTables], Awaitable[T]]) -> T:
        """Return what *act* does with Celery's tables; raises what ``store()`` raises."""
        return self._call(partial(self._monitor.on_results, act))

    def stop(self) -> None:
        """Report what is left, close the connection and end the thread."""
        if self._post(self._stop.set):
            self._thread.wait(STOP_TIMEOUT)

    def _call(self, act: Callable[[], Awaitable[T]]) -> T:
        try:
            return threads.run_on(self._loop, self._thread, act)
        except threads.LoopEnded as error:
            raise StoreUnavailable("The process is going down") from error

    def _report(self, act: Callable[[Run], None], run: Run) -> None:
        self._reports.append((act, run))
        if self._is_collecting:
            return
        try:
            self._is_collecting = True
            self._post(self._collect)
        except BaseException:
            # Raised by a signal, as a time limit is: the next report wakes the loop.
            self._is_collecting = False
            raise

    def _post(self, act: Callable[..., None], *args: Run) -> bool:
        try:
            self._loop.call_soon_threadsafe(act, *args)
        except RuntimeError:
            # The loop is closed: the process is going down, and the request, if there
            # is one, stays pending for whoever runs the task next.
            logger.debug("aioabort worker: the agent has stopped", exc_info=True)
            return False
        return True

    def _collect(self) -> None:
        """Take in what runs have reported: now if it was quiet, else after the gap."""
        now = self._loop.time()
        if now < self._collect_at:
            self._loop.call_at(self._collect_at, self._collect)
            return
        self._collect_at = now + REPORT_GAP
        # Before the queue is read: a run that is appended after it was read wakes
        # the loop again.
        self._is_collecting = False
        while self._reports:
            act, run = self._reports.popleft()
            act(run)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._monitor.run)
            await self._stop.wait()
            await self._drain()
            group.cancel_scope.cancel()

    async def _drain(self) -> None:
        self._collect_at = 0.0
        self._collect()
        with anyio.move_on_after(STOP_TIMEOUT / 2):
            try:
                await self._monitor.drain()
            except StoreError as error:
                logger.warning("aioabort worker: not all was recorded: %s", error)


_agents: dict[Settings, Agent] = {}
_settings: WeakKeyDictionary[Celery, Settings] = WeakKeyDictionary()
_lock = threading.Lock()
_inherited: list[Any] = []


def agent_for(app: Celery) -> Agent:
    """Return this process's agent for *app*, started if need be.

    Raises ImproperlyConfigured if the app's configuration or its pool cannot work.
    """
    settings = _settings.get(app)
    if settings is None:
        settings = _settings.setdefault(app, read_settings(app))
    return agent_with(settings, app)


def agent_with(settings: Settings, app: Celery) -> Agent:
    """Return this process's agent with *settings*, started for *app* if need be."""
    threads.refuse_eventlet()
    agent = _agents.get(settings)
    if agent is None:
        with _lock:
            agent = _agents.get(settings)
            if agent is None:
                agent = _agents[settings] = Agent(settings, Kills(app))
    return agent


def stop_agents(**_: object) -> None:
    """End the agents of this process; a task that starts later starts a new one."""
    while _agents:
        _agents.popitem()[1].stop()


def _forget_parent() -> None:
    # Not even garbage: closing the inherited connection would take the parent's socket
    # out of the event queue that both processes share.
    global _agents, _lock  # noqa: PLW0603
    _inherited.append(_agents)
    _agents = {}
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_parent)
atexit.register(stop_agents)
# A prefork child runs no atexit functions; the other pools' process sends this last.
signals.worker_process_shutdown.connect(stop_agents, weak=False)
signals.worker_shutdown.connect(stop_agents, weak=False)
