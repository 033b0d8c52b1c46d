"""Callbacks that an abort sets off: each at most once, none in the way of another."""

import logging
import threading
from collections.abc import Callable

from aioabort import threads

logger: logging.Logger = logging.getLogger(__name__)


class Call:
    """One callback, and whether it has begun or may still begin."""

    def __init__(self, callback: Callable[[], object]) -> None:
        self._callback = callback
        self._turn = threading.Lock()
        self._caller: int | None = None
        self.is_done: bool = False

    def run(self) -> None:
        """Call the callback, unless it was called or cancelled before."""
        with self._turn:
            if self.is_done:
                return
            self.is_done = True
            self._caller = threading.get_ident()
            try:
                self._callback()
            except Exception:
                logger.exception("A callback of an abort failed")
            finally:
                self._caller = None

    def cancel(self) -> None:
        """See to it that the callback neither runs nor begins when this returns."""
        if self._caller == threading.get_ident():
            return  # it leaves its own block
        with self._turn:
            self.is_done = True


class Callbacks:
    """The callbacks of one token."""

    def __init__(self) -> None:
        self._calls: dict[Call, None] = {}
        self._start = threads.starter("aioabort-callback")

    def add(self, callback: Callable[[], object]) -> Call:
        """Remember *callback* for ``run_all()``."""
        call = Call(callback)
        self._calls[call] = None
        return call

    def remove(self, call: Call) -> None:
        """Forget *call*; if it is running, wait for its end."""
        self._calls.pop(call, None)
        call.cancel()

    def run_all(self) -> bool:
        """Run each in a thread of its own, so that one that blocks holds up nobody else.

        Returns whether there was any.
        """
        calls = list(self._calls)
        for call in calls:
            self._start(call.run)
        return bool(calls)
