"""``abort_mode="raise"``: raises TaskAborted inside a body that does not check.

In the main thread a signal raises it, as Celery's soft time limits do: that interrupts
blocking calls, too. In a thread of a pool it is CPython's asynchronous exception, which
comes when the thread next runs Python code.

Libraries swallow exceptions: ``logging`` does, for one. While the body goes on, the abort
is raised again, as AbortInterrupt, which ``except Exception`` does not catch. It is never
raised in a shield, in a block that handles it already, or after the body: neither in
Celery's own code nor in the next task of the thread.
"""

import asyncio
import ctypes
import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import Any, Final, Literal, TypeVar, cast

from celery import signals

from aioabort.concurrency.gevent import is_gevent_patched
from aioabort.concurrency.loop_thread import LoopEnded, LoopThread
from aioabort.concurrency.per_process import PerProcess
from aioabort.exceptions import AbortInterrupt, TaskAborted
from aioabort.timing import Timing
from aioabort.worker.execution.signal_handler import SignalHandler, handler_of
from aioabort.worker.live_token import LiveToken

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")

Raised = TaskAborted | AbortInterrupt

#: CPython 3.13 tells of a signal only the thread that was the main one at its start. A
#: child that another thread has forked runs no handler until it blocks.
SIGNALS_MAY_STAY_PENDING: Final = sys.version_info >= (3, 13)


def can_interrupt() -> bool:
    """Whether bodies in this thread can be interrupted; if not, log that once."""
    # A signal would hit the greenlet that happens to run, and CPython knows only the
    # one thread of all greenlets.
    return not is_gevent_patched() or _warn_of_greenlets()


@cache
def _warn_of_greenlets() -> bool:
    logger.warning(
        'aioabort worker: abort_mode="raise" cannot interrupt a greenlet; '
        "such tasks have to check for the abort themselves"
    )
    return False


def call_body(body: Callable[[], T]) -> T:
    """Call *body*; an abort that reaches the frame of *body* is known to the task."""
    return body()


def call_interruptibly(
    token: LiveToken, signal: int, timing: Timing, body: Callable[[], T]
) -> T:
    """Call *body* in this thread; an abort of *token* interrupts it.

    *signal* does that in the main thread. When this returns or raises, no exception is on
    its way.
    """
    block = Interruption(token, signal, timing)
    try:
        with block:
            return call_body(body)
    finally:
        # The abort may be raised before the first line of ``block.__exit__()``.
        block.is_over = True


class Interruption:
    """A block of this thread that the abort of *token* interrupts.

    The body's thread enters and leaves it; the agent and a timer interrupt it.
    """

    def __init__(self, token: LiveToken, signal: int, timing: Timing) -> None:
        self._token: Final = token
        self._thread: Final = threading.get_ident()
        self._timing: Final = timing
        self._handler: SignalHandler | None = None
        if threading.current_thread() is threading.main_thread():
            self._handler = handler_of(signal)
        #: Whether the body has ended.
        self.is_over: bool = False
        #: How an exception was sent that has not arrived.
        self._sent: Literal["signal", "exception"] | None = None
        self._kind: type[Raised] = TaskAborted
        #: What has arrived, until it is known whether the body saw it.
        self._error: Raised | None = None
        self._due_at: float | None = None
        self._gap = timing.signal_timeout
        self._ticks = 0

    def __enter__(self) -> None:
        if self._handler is not None and not self._handler.install(self.on_signal):
            self._handler = None
        # May raise the exception, if the abort came before.
        self._token.stop_with(self._step)

    def __exit__(self, _type: object, error: BaseException | None, _tb: object) -> None:
        # Under the lock: ``_step()`` has either run before, or finds this set. The lock
        # is implemented in C. With a context manager written in Python, the error could
        # arrive after its entry and before the block, and leave the lock locked.
        with self._token.lock:
            self.is_over = True
        # CPython raises an error that was sent, and has not arrived, no later than at
        # the start of this function, so that it leaves the body's block like any other
        # error. Not taken back: that leaves CPython 3.11 in a state in which a traced
        # or profiled thread never leaves its next function call.
        self._token.stop_with(None)
        if _is_due_to_abort(error, self._token.task_id) or self._is_known_to_body():
            self._token.mark_seen()
        # It refers to its traceback, which refers to the frames of this block.
        self._error = None

    def on_signal(self) -> bool:
        """Raise the exception if the signal was sent for it; return whether it was."""
        with self._token.lock:
            if self._sent is None:
                return False
            if self._sent == "exception":
                # The signal was late. Were it ignored, a blocking call would go on.
                _raise_in(self._thread, None)
            self._sent = None
            if not self._may_raise():
                return True
            error = self._kind(*self._facts())
            self._on_arrival(error)
        raise error

    def _may_raise(self) -> bool:
        """Return whether the body goes on without a shield; call it with the lock."""
        return (
            not self.is_over
            and self._token.request is not None
            and self._token.is_stopped_by(self._step)
            and self._token.may_stop()
        )

    def _step(self) -> None:
        """Raise the exception if it is due; do so again as long as the body goes on."""
        with self._token.lock:
            if not self._may_raise():
                return
            way = self._next_way()
            # First: in this thread, the exception may arrive at once.
            self._call_again(is_sent=way is not None)
            if way == "signal" and self._handler is not None:
                self._sent = way
                self._handler.send()
            elif way is not None:
                self._sent = "exception"
                _raise_in(self._thread, self._class_of_errors())

    def _next_way(self) -> Literal["signal", "exception"] | None:
        """Return how the exception is to be sent now; None if it is not."""
        if self._sent is not None:
            is_deaf = self._sent == "signal" and SIGNALS_MAY_STAY_PENDING
            return "exception" if is_deaf else None
        now = time.monotonic()
        if self._due_at is None:
            # A body that has raised it itself ends by itself, and cleans up.
            raised = self._token.has_raised_in(self._thread)
            self._due_at = now + (self._timing.cleanup_timeout if raised else 0)
            if raised:
                self._kind = AbortInterrupt
        is_handled = _is_due_to_abort(_handled_in(self._thread), self._token.task_id)
        if self._is_known_to_body():
            self._token.mark_seen()
            self._due_at = now + self._timing.cleanup_timeout
            self._error = None
        elif not is_handled:
            self._error = None
        if is_handled:
            self._due_at = max(self._due_at, now + self._timing.interrupt_pause)
        if now < self._due_at:
            return None
        self._due_at = now + self._timing.interrupt_pause
        self._gap = self._timing.signal_timeout
        return "exception" if self._handler is None else "signal"

    def _call_again(self, *, is_sent: bool) -> None:
        delay = self._gap
        if not is_sent:
            left = (self._due_at or 0.0) - time.monotonic()
            delay = min(delay, left) if left > 0 else delay
        self._gap = min(2 * self._gap, self._timing.cleanup_timeout)
        self._ticks += 1
        _call_later(delay, partial(self._on_tick, self._ticks))

    def _on_tick(self, number: int) -> None:
        # The end of a shield may have begun another series of calls.
        if number == self._ticks:
            self._step()

    def _is_known_to_body(self) -> bool:
        """Whether what has arrived has reached the body's own code.

        Otherwise a function that the body called has swallowed it, and the body knows
        nothing.
        """
        traceback = self._error.__traceback__ if self._error is not None else None
        if traceback is None:
            return False
        # The first frame is the one that has caught it, or handles it.
        caller = traceback.tb_frame.f_back
        return caller is not None and caller.f_code is call_body.__code__

    def _class_of_errors(self) -> "type[Raised]":
        """Return a class whose instances are the abort of this token.

        CPython takes no instance for an asynchronous exception, and makes one when the
        exception is raised, or on Python 3.11, when it is first handled.
        """
        kind: Any = self._kind
        facts, arrived = self._facts(), self._on_arrival

        def make(error: Any, *_: object) -> None:
            kind.__init__(error, *facts)
            arrived(error)

        return cast("type[Raised]", type(kind.__name__, (kind,), {"__init__": make}))

    def _facts(self) -> tuple[Any, ...]:
        request = self._token.request
        return () if request is None else request.error().args

    def _on_arrival(self, error: Raised) -> None:
        """Note that the exception is raised in the body's thread."""
        self._sent = None
        self._kind = AbortInterrupt
        if not self.is_over:
            self._error = error


def _is_due_to_abort(error: BaseException | None, task_id: str) -> bool:
    """Return whether *error* is the abort of the task, or was raised because of it."""
    passed: set[int] = set()
    while error is not None and id(error) not in passed:
        if isinstance(error, TaskAborted | AbortInterrupt) and error.task_id == task_id:
            return True
        passed.add(id(error))
        error = error.__context__ or error.__cause__
    return False


def _handled_in(thread: int) -> BaseException | None:
    """Return the error whose ``except`` or ``finally`` block *thread* is in."""
    handled: Any = vars(sys)["_current_exceptions"]().get(thread)
    # Before Python 3.12, a tuple like that of sys.exc_info().
    if sys.version_info < (3, 12) and handled is not None:
        handled = handled[1]
    return cast("BaseException | None", handled)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    # As a call of CPython's own: the thread cannot run between the check and the call
    # unless the lock is held.
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread),
        ctypes.py_object(error) if error is not None else None,
    )


#: The thread of this process that raises aborts again.
_timers: Final[PerProcess[None, LoopThread]] = PerProcess()


def _call_later(delay: float, call: Callable[[], None]) -> None:
    timers = _timers.get(None, _start_timers)
    with suppress(LoopEnded):
        timers.post(partial(timers.loop.call_later, delay, call))


def _start_timers() -> LoopThread:
    _stop_with_process()
    return LoopThread("aioabort-interrupt", asyncio.Event.wait)


def _stop(**_: object) -> None:
    """End the thread of a prefork child, which runs no more tasks."""
    for timers in _timers.take_all().values():
        timers.stop(Timing().loop_stop_timeout)


@cache
def _stop_with_process() -> None:
    signals.worker_process_shutdown.connect(_stop, weak=False)
