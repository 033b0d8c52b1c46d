"""Coroutines of ``async def`` tasks: on one loop of their own, cancelled by an abort.

The pool's thread waits while the coroutine runs in a second thread, on a loop that all
tasks of the process share. What they block is that loop, never the agent's.
"""

import asyncio
import contextvars
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any, Final

from celery import _state, signals
from celery.app.task import Task
from celery.exceptions import ImproperlyConfigured
from celery.utils.threads import get_ident

from aioabort import threads
from aioabort.exceptions import CoroutineCancelled
from aioabort.worker.token import AbortToken

#: Seconds that the end of a prefork child may be held up by a coroutine that blocks.
STOP_TIMEOUT = 0.2

#: Seconds that a cancelled coroutine has to clean up before it is cancelled again.
CLEANUP_TIME = 5.0

#: A prefork child is killed a tenth of a second after SystemExit was raised in it.
LAST_CLEANUP_TIME = 0.08


def run_coroutine(
    task: "Task[..., Any]", token: AbortToken, coroutine: Coroutine[Any, Any, Any]
) -> Any:
    """Return what *coroutine* returns, or raise what it raises; an abort cancels it.

    What is raised in this thread meanwhile (a soft time limit, the end of the process)
    cancels it, too, and is raised again when it has cleaned up. A coroutine that is
    cancelled and returns a value all the same keeps it.
    """
    try:
        threads.refuse_eventlet()
    except ImproperlyConfigured:
        coroutine.close()
        raise
    _see_the_request_from_the_loop(task)
    job = Job(token, coroutine)
    try:
        return job.result()
    except CoroutineCancelled:
        token.raise_if_aborted()
        raise
    except Exception:
        job.cancel_and_wait(CLEANUP_TIME)
        raise
    except BaseException:
        job.cancel_and_wait(LAST_CLEANUP_TIME)
        raise


class Job:
    """A coroutine on the tasks' loop, seen from the pool's thread."""

    def __init__(self, token: AbortToken, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._token: Final = token
        self._coroutine: Final = coroutine
        self._mailbox: Final = _mailbox()
        self._loop: Final = self._mailbox.loop
        self._done: Future[Any] = Future()
        # For waiting: the future's own lock is not made for two real threads when
        # the pool's are greenlets.
        self._ended: Final = threads.event()
        self._done.add_done_callback(lambda _: self._ended.set())
        self._task: asyncio.Task[None]
        self._again: asyncio.TimerHandle | None = None
        context = contextvars.copy_context()
        context.run(_pool_thread.set, get_ident())
        self._loop.call_soon_threadsafe(self._start, context)

    def result(self) -> Any:
        """Wait for the end of the coroutine, and return or raise what it came to."""
        self._token.stop_with(self.cancel)
        self._ended.wait()
        return self._done.result()

    def cancel(self) -> None:
        """Cancel the coroutine, from any thread."""
        self._mailbox.post(self._cancel)

    def cancel_and_wait(self, timeout: float) -> None:
        """Cancel the coroutine and give it *timeout* seconds to end."""
        if not self._done.done():
            self.cancel()
            self._ended.wait(timeout)

    def _start(self, context: contextvars.Context) -> None:
        self._task = self._loop.create_task(self._drive(), context=context)
        self._task.add_done_callback(self._finish)

    async def _drive(self) -> None:
        try:
            self._done.set_result(await self._coroutine)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit would end the loop
            self._done.set_exception(error)

    def _cancel(self, *, again: bool = False) -> None:
        if self._task.done():
            return
        with self._token.lock:
            if self._token.may_stop():
                self._token.is_aborted()  # has it recorded as seen
                if again or not self._token.has_raised_in(threading.get_ident()):
                    self._task.cancel()
                # Asked once, it may await in its ``finally`` blocks. One that has not
                # ended by then has swallowed the exception: it is asked again.
                ask_again = partial(self._cancel, again=True)
                self._again = self._loop.call_later(CLEANUP_TIME, ask_again)

    def _finish(self, task: asyncio.Task[None]) -> None:
        if self._again is not None:
            self._again.cancel()
        if task.cancelled():
            # Python would warn of one that was cancelled before it began.
            self._coroutine.close()
            self._done.set_exception(
                CoroutineCancelled("A task's coroutine was cancelled")
            )


#: The ident of the pool's thread that waits for the coroutine of this context.
_pool_thread: contextvars.ContextVar[Any] = contextvars.ContextVar(
    "aioabort_pool_thread", default=None
)


def _see_the_request_from_the_loop(task: "Task[..., Any]") -> None:
    """Make ``self.request`` and ``current_task`` those of the waiting pool's thread.

    Celery keeps them by the ident of the thread; in a coroutine, and in the threads
    that it starts by ``asyncio.to_thread``, that ident is the pool's thread's.
    """
    stacks: list[Any] = [vars(_state)["_task_stack"], task.request_stack]
    for stack in stacks:
        stack.__ident_func__ = _ident


def _ident() -> Any:
    return _pool_thread.get() or get_ident()


#: By the loop that blocks while the mailbox's runs, or None for the pool's threads.
_mailboxes: dict[asyncio.AbstractEventLoop | None, threads.Mailbox] = {}
_threads: dict[asyncio.AbstractEventLoop, threads.Event] = {}
_lock = threading.Lock()


def _mailbox() -> threads.Mailbox:
    """Return the mailbox of the loop of this process's coroutines, started if need be.

    A coroutine that runs another task eagerly gets another loop: its own is blocked.
    """
    caller: asyncio.AbstractEventLoop | None = asyncio._get_running_loop()
    with _lock:
        if caller not in {mailbox.loop for mailbox in _mailboxes.values()}:
            caller = None
        if caller not in _mailboxes:
            loop = threads.new_event_loop()
            _threads[loop] = threads.start(partial(_run_loop, loop), "aioabort-tasks")
            _mailboxes[caller] = threads.Mailbox(loop)
        return _mailboxes[caller]


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _stop(**_: object) -> None:
    """End the threads of a prefork child, which runs nothing from now on."""
    with _lock:
        ending = _threads.copy()
        _threads.clear()
        _mailboxes.clear()
    for loop in ending:
        loop.call_soon_threadsafe(loop.stop)
    for thread in ending.values():
        thread.wait(STOP_TIMEOUT)


def _forget_parent() -> None:
    global _mailboxes, _threads, _lock  # noqa: PLW0603
    _inherited.append((_mailboxes, _threads))
    _mailboxes, _threads = {}, {}
    _lock = threading.Lock()


#: Never closed in a child: that would close what the parent still uses.
_inherited: list[object] = []
os.register_at_fork(after_in_child=_forget_parent)
signals.worker_process_shutdown.connect(_stop, weak=False)
