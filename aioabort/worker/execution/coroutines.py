"""Runs the coroutines of ``async def`` tasks, and cancels them when they are aborted.

The pool's thread waits while the coroutine runs in a second thread, on an event loop that
all tasks of the process share. A coroutine that blocks delays that loop, but never the
agent's.
"""

import asyncio
import contextvars
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final, cast

from celery import signals
from celery.app.task import Context, Task
from celery.exceptions import ImproperlyConfigured
from celery.utils.threads import get_ident

from aioabort.celery_compat import identify_threads_by
from aioabort.concurrency.gevent import refuse_eventlet
from aioabort.concurrency.loop_thread import CallQueue, LoopThread, new_event
from aioabort.concurrency.per_process import PerProcess
from aioabort.exceptions import AbortInterrupt, CoroutineCancelled
from aioabort.timing import Timing
from aioabort.worker.live_token import LiveToken


def run_coroutine(
    task: "Task[..., Any]",
    token: LiveToken,
    coroutine: Coroutine[Any, Any, Any],
    timing: Timing,
) -> Any:
    """Return the result of *coroutine*; an abort of *token* cancels it.

    If this thread is interrupted while it waits (by a soft time limit, or the end of the
    process), the coroutine is cancelled, too, and the exception is raised again when the
    coroutine has cleaned up. A coroutine that swallows the cancellation keeps its result.
    """
    try:
        refuse_eventlet()
    except ImproperlyConfigured:
        coroutine.close()
        raise
    identify_threads_by(_ident, task)
    if context := cast("Any", task.request_stack.top):
        context.aioabort_awaiting = token
    running = TaskCoroutine(token, coroutine, timing)
    try:
        return running.result()
    except CoroutineCancelled:
        token.raise_if_aborted()
        raise
    except (Exception, AbortInterrupt):
        running.cancel_and_wait(timing.cleanup_timeout)
        raise
    except BaseException:
        running.cancel_and_wait(timing.exit_cleanup_timeout)
        raise


class TaskCoroutine:
    """A coroutine on the loop of the tasks, controlled from the pool's thread."""

    def __init__(
        self, token: LiveToken, coroutine: Coroutine[Any, Any, Any], timing: Timing
    ) -> None:
        self._token: Final = token
        self._coroutine: Final = coroutine
        self._cleanup_timeout: Final = timing.cleanup_timeout
        self._calls: Final = _call_queue(timing)
        self._done: Future[Any] = Future()
        # The future's own lock is a greenlet's under gevent, and cannot wait for the real
        # thread of the loop.
        ended = new_event()
        self._ended: Final = ended
        self._done.add_done_callback(lambda _: ended.set())
        self._task: asyncio.Task[None]
        self._next_cancel: asyncio.TimerHandle | None = None
        context = contextvars.copy_context()
        context.run(_caller.set, (get_ident(), token))
        self._calls.put(partial(self._start, context))

    def result(self) -> Any:
        """Wait for the end of the coroutine; return its result, or raise its error."""
        previous = self._token.stop_with(self.cancel)
        self._ended.wait()
        # Otherwise the token would keep this object, which keeps the token: only the
        # garbage collector would free them.
        self._token.stop_with(previous)
        return self._done.result()

    def cancel(self) -> None:
        """Cancel the coroutine, from any thread."""
        self._calls.put(self._cancel)

    def cancel_and_wait(self, timeout: float) -> None:
        """Cancel the coroutine, and wait *timeout* seconds for its end."""
        if not self._done.done():
            self.cancel()
            self._ended.wait(timeout)

    def _start(self, context: contextvars.Context) -> None:
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._run(), context=context)
        self._task.add_done_callback(self._on_done)

    async def _run(self) -> None:
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
            if not self._token.may_stop():
                return
            self._token.mark_seen()
            # A coroutine that has raised TaskAborted itself cleans up: a cancellation
            # would interrupt that.
            if again or not self._token.has_raised_in(threading.get_ident()):
                self._task.cancel()
            # The coroutine may await in its ``finally`` blocks. If it does not end, it has
            # swallowed the exception, and is cancelled again.
            self._next_cancel = asyncio.get_running_loop().call_later(
                self._cleanup_timeout, partial(self._cancel, again=True)
            )

    def _on_done(self, task: asyncio.Task[None]) -> None:
        if self._next_cancel is not None:
            self._next_cancel.cancel()
        if task.cancelled():
            # If it never began, Python would warn that it was never awaited.
            self._coroutine.close()
            self._done.set_exception(
                CoroutineCancelled("A task's coroutine was cancelled")
            )


#: The ident of the pool's thread that waits for this coroutine, and the token of its run.
_caller: contextvars.ContextVar[tuple[Any, LiveToken | None]] = contextvars.ContextVar(
    "aioabort_caller", default=(None, None)
)


def is_awaited_here(context: Context) -> bool:
    """Whether this is called by a coroutine of the run that *context* belongs to.

    A thread that the coroutine has started cannot await: it calls as any other code.
    """
    # Celery's own ``__call__()`` copies the context, with this attribute. A task that is
    # run eagerly within the coroutine has a new context, maybe with the same id.
    token = getattr(context, "aioabort_awaiting", None)
    return token is not None and token is _caller.get()[1] and bool(_running_loop())


def _ident() -> Any:
    """Return the ident by which Celery finds ``self.request`` and ``current_task``.

    In a coroutine, and in threads that it starts by ``asyncio.to_thread()``, that is the
    ident of the waiting pool's thread.
    """
    return _caller.get()[0] or get_ident()


@dataclass(frozen=True, slots=True)
class TaskLoop:
    """The queue of an event loop that runs coroutines, and how long its end may take."""

    calls: CallQueue
    stop_timeout: float


#: By the loop that blocks while the other loop runs; None for the pool's threads.
_task_loops: Final[PerProcess[asyncio.AbstractEventLoop | None, TaskLoop]] = (
    PerProcess()
)


def _call_queue(timing: Timing) -> CallQueue:
    """Return the queue of the loop that runs coroutines; start the loop if needed.

    A coroutine that runs another task eagerly blocks its own loop, so that task gets
    another loop.
    """
    caller = _running_loop()
    ours = {loop.calls.thread.loop for loop in _task_loops.values()}
    blocked = caller if caller in ours else None
    return _task_loops.get(blocked, partial(_start_loop, timing)).calls


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _start_loop(timing: Timing) -> TaskLoop:
    _stop_with_process()
    thread = LoopThread("aioabort-tasks", asyncio.Event.wait)
    return TaskLoop(CallQueue(thread), timing.loop_stop_timeout)


def _stop(**_: object) -> None:
    """End the threads of a prefork child, which runs no more tasks."""
    for loop in _task_loops.take_all().values():
        loop.calls.thread.stop(loop.stop_timeout)


@cache
def _stop_with_process() -> None:
    signals.worker_process_shutdown.connect(_stop, weak=False)
