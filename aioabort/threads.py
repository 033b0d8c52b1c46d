"""Threads of the operating system, whatever the pool has made of ``threading``.

Under gevent a ``threading.Thread`` is a greenlet. An event loop in one would be the
running loop of every other greenlet, too, and would stand still while one computes. So
our loops run in real threads there as well, on what gevent has left of the originals;
only what a task waits with is gevent's, so that it lets the other greenlets run.
"""

import _thread
import asyncio
import importlib
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final, Protocol, TypeVar, TypeVarTuple

from celery.exceptions import ImproperlyConfigured

#: A lock that gevent leaves alone, to be held by real threads and greenlets alike.
#: Not for code that may switch to another greenlet: that one would be let in.
RLock = _thread.RLock

#: Seconds between two looks whether the thread that is to answer is still there.
STILL_THERE = 1.0

Act = Callable[[], object]
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Event(Protocol):
    """What of ``threading.Event`` is needed."""

    def set(self) -> None:
        """Let all go on that wait; from any thread."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, and return whether it was within *timeout*."""
        ...


def are_green() -> bool:
    """Whether the pool's threads are greenlets."""
    # Asked again each time: a program may patch itself after it has imported us.
    monkey: Any = sys.modules.get("gevent.monkey")
    return monkey is not None and monkey.is_module_patched("threading")


def refuse_eventlet() -> None:
    """Raise ImproperlyConfigured under eventlet: no real thread can wake its greenlets."""
    patcher: Any = sys.modules.get("eventlet.patcher")
    if patcher is not None and patcher.is_monkey_patched("thread"):
        raise ImproperlyConfigured(
            "the eventlet pool is not supported; gevent, threads and prefork are"
        )


def event() -> Event:
    """Return an event that a thread of the pool waits for, and any thread sets."""
    return _GreenEvent() if are_green() else threading.Event()


def start(target: Act, name: str) -> Event:
    """Run *target* in a real daemon thread; the event is set when it has ended."""
    ended = event()
    if are_green():
        _original("_thread", "start_new_thread")(_run_real, (target, ended))
    else:
        run = partial(_run, target, ended)
        threading.Thread(target=run, name=name, daemon=True).start()
    return ended


def sleep(seconds: float) -> None:
    """Have a real thread sleep, with nothing open that a fork would share."""
    pause = _original("time", "sleep") if are_green() else time.sleep
    pause(seconds)


def starter(name: str) -> Callable[[Act], None]:
    """Return what starts threads of the pool's own kind; to be called from any thread."""
    if not are_green():
        return lambda target: threading.Thread(
            target=target, name=name, daemon=True
        ).start()
    gevent = _gevent()
    return partial(gevent.get_hub().loop.run_callback_threadsafe, gevent.spawn)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop that works in a real thread."""
    return _RealLoop() if are_green() else asyncio.new_event_loop()


class LoopEnded(RuntimeError):
    """The loop's thread ended before it could answer."""


def run_on(
    loop: asyncio.AbstractEventLoop, ended: Event, act: Callable[[], Awaitable[T]]
) -> T:
    """Return what *act* comes to on *loop*; whatever interrupts the wait cancels it.

    *ended* is set at the end of the thread that runs the loop: LoopEnded is raised.
    """
    answered = event()
    tasks: list[asyncio.Future[T]] = []

    def begin() -> None:
        tasks.append(asyncio.ensure_future(act(), loop=loop))
        tasks[0].add_done_callback(lambda _: answered.set())

    def cancel() -> None:
        for task in tasks:
            task.cancel()

    post(loop, begin)
    try:
        _wait_unless(ended, answered)
    except BaseException:
        # A signal's, as a time limit is one.
        with suppress(LoopEnded):
            post(loop, cancel)
        raise
    [task] = tasks
    if task.cancelled():
        raise LoopEnded
    return task.result()


def _wait_unless(ended: Event, answered: Event) -> None:
    while not answered.wait(STILL_THERE):
        if ended.wait(0):
            raise LoopEnded


def post(loop: asyncio.AbstractEventLoop, act: Act) -> None:
    """Have *act* called by *loop*. Raises LoopEnded if that has ended."""
    try:
        loop.call_soon_threadsafe(act)
    except RuntimeError as error:
        raise LoopEnded from error


class Mailbox:
    """Takes calls for a loop from other threads; many at once wake it once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: Final = loop
        self._calls: deque[Act] = deque()
        self._is_woken = False

    def post(self, call: Act) -> None:
        """Have *call* called by the loop."""
        self._calls.append(call)
        if self._is_woken:
            return
        held: list[Act] | None = getattr(_this_thread, "held", None)
        try:
            self._is_woken = True
            if held is None:
                self._wake()
            else:
                held.append(self._wake)
        except BaseException:
            # Raised by a signal, as a time limit is: the next call wakes the loop.
            self._is_woken = False
            raise

    def _wake(self) -> None:
        self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        # Before the calls are read: one that is appended after that wakes the loop.
        self._is_woken = False
        while self._calls:
            self.loop.call_soon(self._calls.popleft())


#: Of a thread, not of a context: one that is started in the block would inherit that.
_this_thread = threading.local()


@contextmanager
def one_wake_up() -> Generator[None]:
    """Have mailboxes wake their loops when the block ends, not at the first call in it.

    Else the first of many that are aborted at once are cancelled, and their threads
    store results, before the last ones are told: these wait for a turn among all those.
    """
    held = _this_thread.held = list[Act]()
    try:
        yield
    finally:
        _this_thread.held = None
        for wake in held:
            wake()


class _RealLoop(asyncio.SelectorEventLoop):
    """A loop that gevent's replacements cannot send into gevent's own."""

    def __init__(self) -> None:
        super().__init__(_original("selectors", "DefaultSelector")())

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Run *func* in a real thread; the default executor's would be greenlets."""
        if executor is not None:
            return super().run_in_executor(executor, func, *args)
        future: asyncio.Future[T] = self.create_future()
        start(partial(self._work, future, partial(func, *args)), "aioabort-executor")
        return future

    def _work(self, future: asyncio.Future[T], act: Callable[[], T]) -> None:
        try:
            settle = partial(future.set_result, act())
        except BaseException as error:  # noqa: BLE001 - it is the waiter's
            settle = partial(future.set_exception, error)
        self.call_soon_threadsafe(lambda: future.done() or settle())


class _GreenEvent:
    """An event that greenlets wait for and a real thread sets.

    gevent's own is that only by best effort; this one uses no more than the one thing
    that its loops document as safe to be called from another thread.
    """

    def __init__(self) -> None:
        self._lock = RLock()
        self._is_set = False
        self._waiting: list[Any] = []

    def set(self) -> None:
        # The lock keeps a waiter from closing its watcher at the same time.
        with self._lock:
            self._is_set = True
            for watcher in self._waiting:
                watcher.send()

    def wait(self, timeout: float | None = None) -> bool:
        gevent = _gevent()
        hub = gevent.get_hub()
        watcher = hub.loop.async_()
        # Before the flag is read: what is sent to one that is not started is lost.
        watcher.start(gevent.getcurrent().switch)
        with self._lock:
            self._waiting.append(watcher)
        try:
            with gevent.Timeout(timeout, exception=False):
                while not self._is_set:
                    hub.switch()
        finally:
            with self._lock:
                self._waiting.remove(watcher)
                watcher.close()
        return self._is_set


def _run(target: Act, ended: Event) -> None:
    try:
        target()
    finally:
        # A signal that the main thread holds off is for that thread alone. billiard does
        # so with SIGTERM while a child holds the lock that it shares with the others;
        # taken here, it would end the process with the lock held.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        ended.set()


def _run_real(target: Act, ended: Event) -> None:
    try:
        _run(target, ended)
    finally:
        # Whatever touched a socket here has made a hub for this thread.
        _gevent().get_hub().destroy(destroy_loop=True)


def _gevent(name: str = "") -> Any:
    # By name: gevent need not be installed, and type checkers need not know it.
    return importlib.import_module(f"gevent.{name}" if name else "gevent")


def _original(module: str, name: str) -> Any:
    return _gevent("monkey").get_original(module, name)
