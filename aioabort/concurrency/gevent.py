"""Real threads in a process that gevent has patched.

Under gevent a ``threading.Thread`` is a greenlet. An event loop in a greenlet would be the
running loop of every other greenlet, too, and would stop while one of them computes. So
our event loops run in real threads. A task waits for an event of gevent's, so that the
other greenlets go on.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any

from celery.exceptions import ImproperlyConfigured

from aioabort.concurrency.real_thread_loop import RealThreadLoop


def is_gevent_patched() -> bool:
    """Whether gevent has replaced ``threading``: the pool's threads are greenlets."""
    # Read at each call: a program may patch after it has imported aioabort.
    monkey: Any = sys.modules.get("gevent.monkey")
    return monkey is not None and monkey.is_module_patched("threading")


def refuse_eventlet() -> None:
    """Raise ImproperlyConfigured under eventlet: no real thread can wake its greenlets."""
    patcher: Any = sys.modules.get("eventlet.patcher")
    if patcher is not None and patcher.is_monkey_patched("thread"):
        raise ImproperlyConfigured(
            "the eventlet pool is not supported; use prefork, threads or gevent"
        )


def import_gevent(name: str = "") -> Any:
    """Return the module ``gevent``, or its module *name*."""
    # By name: gevent may be missing, also where type checkers run.
    return importlib.import_module(f"gevent.{name}" if name else "gevent")


def original(module: str, name: str) -> Any:
    """Return the original of *name* in *module*, which gevent has replaced."""
    return import_gevent("monkey").get_original(module, name)


class GreenletEvent:
    """An event that greenlets wait for and a real thread sets.

    gevent does not guarantee that its own events can be set from another thread. This one
    uses an async watcher of gevent's event loop, whose ``send()`` is thread-safe.
    """

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._is_set = False
        self._watchers: list[Any] = []

    def set(self) -> None:
        """Wake all greenlets that wait; callable from any thread."""
        # With the lock, no greenlet closes its watcher at the same time.
        with self._lock:
            self._is_set = True
            for watcher in self._watchers:
                watcher.send()

    def wait(self, timeout: float | None = None) -> bool:
        """Return whether the event was set within *timeout* seconds."""
        gevent = import_gevent()
        hub = gevent.get_hub()
        watcher = hub.loop.async_()
        # Before the flag is read: send() does not reach a watcher that has not started.
        watcher.start(gevent.getcurrent().switch)
        with self._lock:
            self._watchers.append(watcher)
        try:
            with gevent.Timeout(timeout, exception=False):
                while not self._is_set:
                    hub.switch()
        finally:
            with self._lock:
                self._watchers.remove(watcher)
                watcher.close()
        return self._is_set


class LoopBesideGevent(RealThreadLoop):
    """An event loop for a real thread; it uses nothing that gevent has replaced."""

    def __init__(
        self, start_thread: Callable[[Callable[[], object], str], object]
    ) -> None:
        super().__init__(start_thread, original("selectors", "DefaultSelector")())
        # Of the thread that makes the loop, which is not the loop's own.
        self._hub = import_gevent().get_hub()

    def spawn(self, call: Callable[[], object]) -> None:
        """Make *call* in a greenlet of the thread that has made this loop."""
        self._hub.loop.run_callback_threadsafe(import_gevent().spawn, call)
