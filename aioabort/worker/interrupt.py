"""``abort_mode="raise"``: TaskAborted raised inside a body that never looks.

In the main thread by a signal, as Celery's soft time limits are: that interrupts
blocking calls, too. In a thread of a pool by CPython's asynchronous exception, which
comes when the thread next runs Python code.

It is raised at most once, never within a shield, and never after the body: not into
Celery's own code, and not into the next task of the thread.
"""

import ctypes
import logging
import signal
import threading
from contextlib import nullcontext
from functools import cache
from types import FrameType
from typing import Any, Protocol

from aioabort import threads
from aioabort.exceptions import TaskAborted
from aioabort.worker.token import AbortToken

logger: logging.Logger = logging.getLogger(__name__)

#: Ignored by default, so one that arrives late harms nobody. Celery uses SIGUSR1.
SIGNAL = signal.SIGURG


class Interruption(Protocol):
    """A way to raise TaskAborted in the thread that runs a body."""

    def __enter__(self) -> object:
        """Allow it, from now on."""

    def __exit__(self, *_: object) -> None:
        """Allow it no more; when this returns, none is on its way."""


def interruption(token: AbortToken) -> Interruption:
    """Return what interrupts this thread when *token* is aborted."""
    if threads.are_green():
        # The signal would hit whichever greenlet runs, and CPython knows one thread.
        _warn_of_greenlets()
        return nullcontext()
    if threading.current_thread() is threading.main_thread():
        return SignalInterruption(token)
    return ThreadInterruption(token)


@cache
def _warn_of_greenlets() -> None:
    logger.warning(
        'aioabort worker: abort_mode="raise" cannot interrupt a greenlet; '
        "such tasks have to look for the abort themselves"
    )


class SignalInterruption:
    """Interrupts the main thread, whatever it waits for."""

    def __init__(self, token: AbortToken) -> None:
        self._token = token
        self._thread = threading.get_ident()
        self._is_armed = False
        self._before: Any = None

    def __enter__(self) -> None:
        self._before = signal.signal(SIGNAL, self._on_signal)
        self._is_armed = True
        self._token.stop_with(self._send)

    def __exit__(self, *_: object) -> None:
        # Raised before this line has its effect, the error leaves the body's block
        # like any other, and none follows: it has disarmed itself.
        self._is_armed = False
        self._token.stop_with(None)
        signal.signal(SIGNAL, self._before)

    def _send(self) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        request = self._token.request
        with self._token.lock:
            if not self._token.may_stop() or not self._is_armed or request is None:
                return
            self._is_armed = False
            if self._token.has_raised_in(self._thread):
                return
        self._token.is_aborted()  # has it recorded as seen
        raise request.error()


class ThreadInterruption:
    """Interrupts a thread of a pool at its next bytecode."""

    def __init__(self, token: AbortToken) -> None:
        self._token = token
        self._thread = threading.get_ident()
        self._is_armed = False

    def __enter__(self) -> None:
        self._is_armed = True
        self._token.stop_with(self._send)

    def __exit__(self, *_: object) -> None:
        # Under the token's lock: whoever sends has either sent, or finds it disarmed.
        # Not by a context manager of Python's: if the error arrived between its entry
        # and the block, the lock would stay locked.
        with self._token.lock:
            self._is_armed = False
        self._token.stop_with(None)
        # What was sent and has not arrived is taken back. If it arrives before this
        # call, it leaves the body's block like any other error.
        _set_async_error(self._thread, None)

    def _send(self) -> None:
        request = self._token.request
        with self._token.lock:
            if self._token.may_stop() and self._is_armed and request is not None:
                self._is_armed = False
                self._token.is_aborted()  # has it recorded as seen
                if not self._token.has_raised_in(self._thread):
                    _set_async_error(self._thread, _class_of(request.error()))


def _class_of(error: TaskAborted) -> type[TaskAborted]:
    """Return a class whose instances are copies of *error*: CPython takes no instance."""

    class Interrupted(TaskAborted):
        def __init__(self, *_: object) -> None:
            super().__init__(error.reason, error.requested_by, error.task_id)

    return Interrupted


def _set_async_error(thread: int, error: type[BaseException] | None) -> None:
    # As a call of CPython's own: the thread cannot run between the check and the call
    # unless the lock is held, and with NULL the call takes back what is pending.
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error)
    )
