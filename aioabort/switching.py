"""How soon Python's threads take turns, while a look at PostgreSQL is under way.

A thread that computes gives way to another after the interpreter's switch interval,
5 ms by default, and a statement takes three such turns. For the milliseconds of a look
they come sooner; a check in a busy task is true by so much earlier.
"""

import os
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager

#: Seconds.
SOON = 0.0005


class _Hurry:
    """How many blocks of this process are in a hurry, and what was usual before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._usual = 0.0

    def begin(self) -> None:
        with self._lock:
            if not self._blocks:
                self._usual = sys.getswitchinterval()
                if self._usual > SOON:
                    sys.setswitchinterval(SOON)
            self._blocks += 1

    def end(self) -> None:
        with self._lock:
            self._blocks -= 1
            if not self._blocks:
                self.stop()

    def stop(self) -> None:
        # What another part of the program has set since is left alone.
        if sys.getswitchinterval() <= SOON < self._usual:
            # Python cuts off what is less than a microsecond.
            sys.setswitchinterval(self._usual + 5e-7)

    def is_on(self) -> bool:
        return self._blocks > 0


_hurry = _Hurry()


@contextmanager
def switching_soon() -> Generator[None]:
    """Have threads take turns sooner until the block ends; blocks may overlap."""
    hurry = _hurry
    hurry.begin()
    try:
        yield
    finally:
        hurry.end()


def _forget_parent() -> None:
    global _hurry  # noqa: PLW0603
    # The thread that was in a hurry has stayed behind, perhaps with the lock.
    if _hurry.is_on():
        _hurry.stop()
    _hurry = _Hurry()


os.register_at_fork(after_in_child=_forget_parent)
