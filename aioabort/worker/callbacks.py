"""The callbacks of a token: each runs at most once, and none delays another."""

import logging
import threading
from collections.abc import Callable

from aioabort.concurrency.loop_thread import thread_starter

logger: logging.Logger = logging.getLogger(__name__)


class Callback:
    """A function that runs once, unless it is cancelled before."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._is_done = False

    def run(self) -> None:
        """Call the function, unless it was called or cancelled before."""
        with self._lock:
            if self._is_done:
                return
            self._is_done = True
            self._thread = threading.get_ident()
            try:
                self._function()
            except Exception:
                logger.exception("A callback of an abort failed")
            finally:
                self._thread = None

    def cancel(self) -> None:
        """Prevent a call that has not begun; wait for the end of one that has."""
        if self._thread == threading.get_ident():
            return  # The function itself leaves the block: it would wait for itself.
        with self._lock:
            self._is_done = True


class Callbacks:
    """The callbacks of one token."""

    def __init__(self) -> None:
        self._callbacks: dict[Callback, None] = {}
        self._start = thread_starter("aioabort-callback")

    def add(self, function: Callable[[], object]) -> Callback:
        """Return a callback for *function*, which ``run_all()`` runs."""
        callback = Callback(function)
        self._callbacks[callback] = None
        return callback

    def remove(self, callback: Callback) -> None:
        """Cancel *callback*; if it is running, wait for its end."""
        self._callbacks.pop(callback, None)
        callback.cancel()

    def run_all(self) -> bool:
        """Run each callback in a thread of its own; return whether there is any."""
        callbacks = list(self._callbacks)
        for callback in callbacks:
            self._start(callback.run)
        return bool(callbacks)
