"""A shorter switch interval while the agent queries PostgreSQL.

A thread that computes hands over the interpreter after the switch interval, 5 ms by
default, and one query needs three such turns. During a query the interval is 0.5 ms, so
that a busy task sees its abort sooner.
"""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from aioabort.concurrency.loop_thread import RLock
from aioabort.concurrency.per_process import PerProcess

#: Seconds.
SHORT_INTERVAL: Final = 0.0005


class _SwitchInterval:
    """Counts the blocks of this process that need the short interval."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._blocks = 0
        self._usual = 0.0

    def enter(self) -> None:
        with self._lock:
            if not self._blocks:
                self._usual = sys.getswitchinterval()
            # Counted before the interval changes: another thread may fork in between,
            # and a child restores the interval only if a block is counted.
            self._blocks += 1
            if self._blocks == 1 and self._usual > SHORT_INTERVAL:
                sys.setswitchinterval(SHORT_INTERVAL)

    def leave(self) -> None:
        with self._lock:
            if self._blocks == 1:
                self._restore()
            self._blocks -= 1

    def restore_after_fork(self) -> None:
        # Without the lock: its owner may be a thread of the parent.
        if self._blocks:
            self._restore()

    def _restore(self) -> None:
        # Unless the program has set another interval within the block.
        if sys.getswitchinterval() <= SHORT_INTERVAL < self._usual:
            # Python truncates to whole microseconds.
            sys.setswitchinterval(self._usual + 5e-7)


_intervals: Final[PerProcess[None, _SwitchInterval]] = PerProcess(
    on_fork=_SwitchInterval.restore_after_fork
)


@contextmanager
def short_switch_interval() -> Generator[None]:
    """Let threads switch sooner until the block ends; blocks may overlap."""
    interval = _intervals.get(None, _SwitchInterval)
    interval.enter()
    try:
        yield
    finally:
        interval.leave()
