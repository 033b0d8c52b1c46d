"""Tasks that still run at the end of their grace are killed, by Celery's own means.

``revoke(terminate=True)`` ends the process that runs the task. Only prefork pools have
one. The process that runs the task revokes it; if that process is too busy or stuck,
another process that runs abortable tasks does it later.
"""

import asyncio
import logging
import os
import signal
from contextlib import suppress
from functools import partial
from typing import Final, Never, Protocol

from anyio import move_on_after
from celery import Celery

from aioabort.celery_compat import is_main_process
from aioabort.concurrency.blocking import run_blocking
from aioabort.exceptions import StoreBusy, StoreError
from aioabort.models import AbortRequest
from aioabort.postgres.request_store import RequestStore
from aioabort.reconnect import may_pass
from aioabort.timing import Timing
from aioabort.worker.run import Run

logger: logging.Logger = logging.getLogger(__name__)

#: The threads that talk to brokers.
PURPOSE: Final = "aioabort-revoke"


class Runs(Protocol):
    """The runs of this process."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    @property
    def apps(self) -> set[Celery]:
        """Their apps."""
        ...


class KillScheduler:
    """Kills the runs of this process when their grace is over.

    A kill that is ``timing.kill_overdue`` seconds late, or has had no effect by then, is carried out
    by another process. *app* is that of the runs that name none.
    """

    def __init__(self, app: Celery, timing: Timing) -> None:
        self._app: Final = app
        self._overdue: Final = timing.kill_overdue
        self._claim_again_after: Final = timing.kill_claim_again
        self._due: Final[asyncio.Queue[Run]] = asyncio.Queue()
        self._timers: Final[dict[Run, asyncio.TimerHandle]] = {}
        #: The run whose kill is being claimed or sent.
        self._unsent: Run | None = None

    def schedule(self, run: Run, seconds: float) -> None:
        """Kill *run* in so many seconds, unless it has ended by then."""
        self.cancel(run)
        loop = asyncio.get_running_loop()
        self._timers[run] = loop.call_later(seconds, self._due.put_nowait, run)

    def cancel(self, run: Run) -> None:
        """Do not kill *run*."""
        if timer := self._timers.pop(run, None):
            timer.cancel()

    async def run(self, store: RequestStore, runs: Runs) -> Never:
        """Kill the runs that are due, for ever.

        While this process has any *runs*, it also carries out the overdue kills of
        other processes.
        """
        if self._unsent is not None:
            # The connection was lost before the kill was sent. It may be claimed: the
            # answer to the claim was lost.
            await self._postpone(store, self._unsent, 0.0)
        while True:
            due: Run | None = None
            with move_on_after(self._overdue):
                due = await self._due.get()
            if due is not None:
                await self._kill_run(store, due)
            elif runs:
                with suppress(StoreBusy):
                    await self._kill_overdue(store, {self._app} | runs.apps)

    async def _kill_overdue(self, store: RequestStore, apps: set[Celery]) -> None:
        for task_id in await store.claim_overdue_kills(self._overdue):
            await self._kill_foreign_run(store, apps, task_id)

    async def _claim(
        self, store: RequestStore, run: Run, request: AbortRequest
    ) -> bool:
        """Return whether this process has to kill *run*; if it is unknown, try again."""
        try:
            return await store.claim_kill(request)
        except StoreBusy as error:
            logger.warning(
                "aioabort worker: task %s is not killed yet: %s", run.task_id, error
            )
            self.schedule(run, self._claim_again_after)
            return False

    async def _kill_run(self, store: RequestStore, run: Run) -> None:
        request = run.request
        if request is None or run.has_ended:
            return
        app = run.app or self._app
        obstacle = _obstacle(app)
        if obstacle is not None:
            if await self._claim(store, run, request):
                run.mark_unkillable()
                logger.warning(
                    "aioabort worker: task %s cannot be killed after its grace: %s",
                    run.task_id,
                    obstacle,
                )
            return
        self._unsent = run
        if await self._claim(store, run, request):
            await self._terminate(store, app, run)
        self._unsent = None

    async def _terminate(self, store: RequestStore, app: Celery, run: Run) -> None:
        is_sent = False
        try:
            # The thread of a broker that does not answer is left behind.
            with move_on_after(self._overdue):
                is_sent = await run_blocking(partial(_send_sigterm, app, run), PURPOSE)
        except Exception as error:
            if not may_pass(error):
                run.mark_unkillable()
                logger.exception(
                    "aioabort worker: task %s cannot be killed", run.task_id
                )
                return
            logger.exception(
                "aioabort worker: task %s could not be killed; trying again in %g s",
                run.task_id,
                self._overdue,
            )
        if is_sent:
            loop = asyncio.get_running_loop()
            loop.call_later(self._overdue, _kill_own_process, run)
        elif not run.has_ended:
            await self._postpone(store, run, self._overdue)

    async def _postpone(self, store: RequestStore, run: Run, seconds: float) -> None:
        """Let this process, or another one, claim the kill of *run* once more."""
        await store.shorten_grace([run.task_id], seconds)
        self.schedule(run, seconds)

    async def _kill_foreign_run(
        self, store: RequestStore, apps: set[Celery], task_id: str
    ) -> None:
        """Kill a run of another process, which may be of any of *apps*."""
        for app in apps:
            try:
                with move_on_after(self._overdue):
                    await run_blocking(partial(_send_sigkill, app, task_id), PURPOSE)
            except Exception as error:
                logger.exception(
                    "aioabort worker: task %s could not be killed; trying again in %g s",
                    task_id,
                    self._overdue,
                )
                if may_pass(error):
                    with suppress(StoreError):
                        await store.shorten_grace([task_id], self._overdue)


def _obstacle(app: Celery) -> str | None:
    """Return why no task of this process can be killed, or None if it can be."""
    if is_main_process():
        return "its pool has no process to end"
    if not app.conf.worker_enable_remote_control:
        return "worker_enable_remote_control is off"
    with app.connection_for_write() as connection:
        # Only asks the transport's class, without connecting.
        if not connection.supports_exchange_type("fanout"):
            return "its broker has no remote control"
    return None


def _send_sigterm(app: Celery, run: Run) -> bool:
    """Ask all main processes to end the process of *run*; return False if its body is over.

    The broker has to answer first. Until then, the body may end; from then on, it waits
    for the kill.
    """
    with app.connection_for_write() as connection:
        connection.connect()
        _ = connection.default_channel
        if not run.claim_for_kill():
            return False
        _log_kill(run.task_id)
        try:
            app.control.revoke(
                run.task_id, terminate=True, signal="SIGTERM", connection=connection
            )
        except BaseException:
            run.release()
            raise
    return True


def _send_sigkill(app: Celery, task_id: str) -> None:
    """Ask all main processes to kill the process of a task.

    It has not killed its task by now, so it runs no Python, and would not handle SIGTERM
    either.
    """
    _log_kill(task_id)
    app.control.revoke(task_id, terminate=True, signal="SIGKILL")


def _kill_own_process(run: Run) -> None:
    """End this process: SIGTERM did not interrupt the call that its main thread is in."""
    if not run.has_ended:
        os.kill(os.getpid(), signal.SIGKILL)


def _log_kill(task_id: str) -> None:
    logger.warning("aioabort worker: killing task %s, its grace is over", task_id)
