"""Forks of this process, which wait until a thread of ours is between two steps.

A child has no thread but the one that forked it, and all the locks as they were: what
another thread held (an import's, one of OpenSSL's many) is never released in it.
"""

import asyncio
import os
import selectors
import threading
from collections.abc import Coroutine
from contextlib import nullcontext
from typing import Any, TypeVar

from aioabort import threads

#: Seconds that a fork waits at most; a step takes thousandths of one.
LONGEST_WAIT = 1.0

T = TypeVar("T")


class _Gate:
    """Held by the thread in each step of its loop, and by whoever forks."""

    def __init__(self) -> None:
        self.lock: threading.Lock = threading.Lock()
        self._is_held = False

    def close(self) -> None:
        self._is_held = self.lock.acquire(timeout=LONGEST_WAIT)

    def open(self) -> None:
        if self._is_held:
            self.lock.release()

    def replace(self) -> None:
        self.lock = threading.Lock()


_gate = _Gate()
os.register_at_fork(
    before=_gate.close, after_in_parent=_gate.open, after_in_child=_gate.replace
)


def run_between_forks(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return what *coroutine* comes to, on a loop of its own.

    Where it awaits, this process may be forked; where it blocks, a fork waits, but for
    a second at most.
    """
    # Under gevent, a pool that forks nothing, the loop is another one.
    is_green = threads.are_green()
    new_loop = threads.new_event_loop if is_green else _new_loop
    gate = nullcontext() if is_green else _gate.lock
    with gate, asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(coroutine)


def _new_loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(_Selector())


class _Selector(selectors.DefaultSelector):
    """Lets the process be forked while the loop has nothing to do."""

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
