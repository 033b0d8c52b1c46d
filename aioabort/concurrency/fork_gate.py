"""Forks of this process wait while a thread of ours is inside a step of its event loop.

A forked child has only the thread that forked, and each lock in its state at the fork. A
lock that another thread holds (of an import, or one of OpenSSL's many) is never released
in the child.
"""

import asyncio
import os
import selectors
import threading
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any, TypeVar

from aioabort.concurrency.gevent import is_gevent_patched
from aioabort.concurrency.loop_thread import new_event_loop

#: Seconds that a fork waits at most. A step takes milliseconds, but on a machine with more
#: work than processors it may wait for its turn, and a child that is forked in the middle
#: of it may lose aborts for ever.
LONGEST_WAIT = 10.0

T = TypeVar("T")


class _ForkGate:
    """A lock that the loop's thread holds during each step, and a thread that forks."""

    def __init__(self) -> None:
        self.lock: threading.Lock = threading.Lock()
        # By thread: two threads may fork at the same time, and one of them may have
        # given up waiting for the lock.
        self._this_thread = threading.local()

    def close(self) -> None:
        if not self._is_held:
            self._is_held = self.lock.acquire(timeout=LONGEST_WAIT)

    def open(self) -> None:
        if self._is_held:
            self._is_held = False
            self.lock.release()

    def replace(self) -> None:
        self.lock = threading.Lock()
        self._is_held = False

    @property
    def _is_held(self) -> bool:
        return getattr(self._this_thread, "is_held", False)

    @_is_held.setter
    def _is_held(self, value: bool) -> None:
        self._this_thread.is_held = value


_gate = _ForkGate()


def run_between_forks(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of *coroutine*, run on an event loop of its own.

    While the loop waits for a socket or a timer, this process may fork. Otherwise a fork
    waits, for ten seconds at most.
    """
    if is_gevent_patched():
        # gevent's pool does not fork, and its loop cannot use our selector.
        return _run(coroutine, new_event_loop)
    _hold_forks()
    with _gate.lock:
        return _run(coroutine, _new_loop)


def _run(
    coroutine: Coroutine[Any, Any, T], new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> T:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(coroutine)


@cache
def _hold_forks() -> None:
    # Two threads may get here at the same time: a second set of hooks does no harm.
    os.register_at_fork(
        before=_gate.close, after_in_parent=_gate.open, after_in_child=_gate.replace
    )


def _new_loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(_Selector())


class _Selector(selectors.DefaultSelector):
    """Lets the process fork while the loop waits."""

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait as any selector does."""
        lock = _gate.lock
        lock.release()
        try:
            return super().select(timeout)
        finally:
            lock.acquire()
