"""Real threads, event loops in them, and calls from other threads to such a loop."""

import _thread
import asyncio
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from aioabort.concurrency.gevent import (
    GreenletEvent,
    LoopBesideGevent,
    import_gevent,
    is_gevent_patched,
    original,
)
from aioabort.concurrency.real_thread_loop import RealThreadLoop

#: A lock that gevent does not replace, for real threads and greenlets alike. Code that
#: holds it must not switch greenlets: another greenlet of the thread could enter, too.
RLock = _thread.RLock

#: Seconds between two checks whether the loop's thread still runs.
LIVENESS_INTERVAL = 1.0

Call = Callable[[], object]
T = TypeVar("T")


class Event(Protocol):
    """The part of ``threading.Event`` that this package uses."""

    def set(self) -> None:
        """Wake all threads that wait; callable from any thread."""

    def wait(self, timeout: float | None = None) -> bool:
        """Return whether the event was set within *timeout* seconds."""
        ...


class LoopEnded(RuntimeError):
    """The thread of the event loop has ended, or ended before it returned a result."""


def new_event() -> Event:
    """Return an event that threads of Celery's pool wait for, and any thread sets."""
    return GreenletEvent(RLock()) if is_gevent_patched() else threading.Event()


def start_thread(target: Call, name: str) -> Event:
    """Run *target* in a real daemon thread; the returned event is set at its end."""
    ended = new_event()
    if is_gevent_patched():
        original("_thread", "start_new_thread")(_run_beside_gevent, (target, ended))
    else:
        run = partial(_run, target, ended)
        threading.Thread(target=run, name=name, daemon=True).start()
    return ended


def thread_starter(name: str) -> Callable[[Call], None]:
    """Return a function that starts greenlets under gevent, and otherwise threads.

    The function may be called from any thread.
    """
    if not is_gevent_patched():
        return lambda target: threading.Thread(
            target=target, name=name, daemon=True
        ).start()
    gevent = import_gevent()
    return partial(gevent.get_hub().loop.run_callback_threadsafe, gevent.spawn)


def sleep(seconds: float) -> None:
    """Let a real thread sleep. No file is open that a forked child would inherit."""
    pause = original("time", "sleep") if is_gevent_patched() else time.sleep
    pause(seconds)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop that works in a real thread.

    If the user's event loop policy makes other loops than asyncio's, such as uvloop's, it
    is one of them: beside such a policy, asyncio's loops cannot start subprocesses.
    """
    if is_gevent_patched():
        return LoopBesideGevent(start_thread)
    loop = asyncio.new_event_loop()
    if not isinstance(loop, asyncio.BaseEventLoop):
        return loop
    loop.close()
    return RealThreadLoop(start_thread)


class LoopThread:
    """A daemon thread that runs *main* on an event loop.

    *main* gets an event that ``stop()`` sets; then it has to return.
    """

    def __init__(
        self, name: str, main: Callable[[asyncio.Event], Awaitable[object]]
    ) -> None:
        # The loop accepts calls before its thread runs, so this does not wait for the
        # thread. Under gevent, waiting with a lock of the caller's could deadlock.
        self.loop: Final = new_event_loop()
        self._main = main
        self._stop: Final = asyncio.Event()
        self._ended: Final = start_thread(self._run, name)

    def call(self, act: Callable[[], Awaitable[T]]) -> T:
        """Return the result of *act*, which runs on the loop.

        If an exception interrupts the wait, such as a soft time limit's, *act* is
        cancelled. Raises LoopEnded if the thread ends before *act* does.
        """
        answered = new_event()
        tasks: list[asyncio.Future[T]] = []

        def begin() -> None:
            tasks.append(asyncio.ensure_future(act(), loop=self.loop))
            tasks[0].add_done_callback(lambda _: answered.set())

        def cancel() -> None:
            for task in tasks:
                task.cancel()

        try:
            self.post(begin)
            self._wait_for(answered)
        except BaseException:
            # Signal handlers raise here. The loop makes calls in order, so begin() has
            # run before cancel() if it was posted.
            with suppress(LoopEnded):
                self.post(cancel)
            raise
        [task] = tasks
        if task.cancelled():
            raise LoopEnded("the event loop was stopped before it returned a result")
        return task.result()

    def post(self, call: Call) -> None:
        """Have the loop make *call*. Raises LoopEnded if the thread has ended."""
        try:
            self.loop.call_soon_threadsafe(call)
        except RuntimeError as error:
            raise LoopEnded("the event loop's thread has ended") from error

    def stop(self, timeout: float) -> None:
        """Have *main* return, and wait at most *timeout* seconds for the thread."""
        with suppress(LoopEnded):
            self.post(self._stop.set)
            self._ended.wait(timeout)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self._until_stopped())

    async def _until_stopped(self) -> None:
        await self._main(self._stop)

    def _wait_for(self, answered: Event) -> None:
        while not answered.wait(LIVENESS_INTERVAL):
            # In this order: *answered* may be set just before the thread ends.
            if self._ended.wait(0) and not answered.wait(0):
                raise LoopEnded("the event loop's thread has ended")


class CallQueue:
    """Calls from other threads to an event loop; many calls wake the loop once.

    The loop makes the queued calls at once, but not earlier than *gap* seconds after the
    previous ones.
    """

    def __init__(self, thread: LoopThread, gap: float = 0.0) -> None:
        self.thread: Final = thread
        self._gap = gap
        self._due_at = 0.0
        self._calls: deque[Call] = deque()
        self._is_woken = False

    def put(self, call: Call) -> None:
        """Have the loop make *call*. Raises LoopEnded if its thread has ended."""
        try:
            self._calls.append(call)
            if self._is_woken:
                return
            self._is_woken = True
            held: list[Call] | None = getattr(_this_thread, "held_wakeups", None)
            if held is None:
                self._wake()
            else:
                held.append(self._wake)
        except BaseException:
            # A signal handler has raised, perhaps before the loop was woken. Another
            # thread may have queued a call meanwhile, and relies on this wake-up.
            with suppress(LoopEnded):
                self._wake()
            raise

    def make_calls(self) -> None:
        """Make the queued calls now; only on the loop."""
        # Before the queue is read: a call that is queued afterwards wakes the loop.
        self._is_woken = False
        try:
            while self._calls:
                self._calls.popleft()()
        finally:
            if self._calls:
                # A call has raised; the calls after it must not wait for the next put().
                self._wake()

    def _wake(self) -> None:
        try:
            self.thread.post(self._make_calls_when_due)
        except LoopEnded:
            # So that the next put() raises LoopEnded, too.
            self._is_woken = False
            raise

    def _make_calls_when_due(self) -> None:
        now = self.thread.loop.time()
        if now < self._due_at:
            self.thread.loop.call_at(self._due_at, self._make_calls_when_due)
            return
        self._due_at = now + self._gap
        self.make_calls()


#: Not a context variable: a thread that is started in the block could inherit that.
_this_thread = threading.local()


@contextmanager
def batch_wakeups() -> Generator[None]:
    """Let call queues wake their loops at the end of the block.

    Otherwise, when many coroutines are aborted, the first ones would be cancelled and
    their threads would store results before the last calls are queued. The last
    coroutines would wait until all these threads have had their turn.
    """
    held = _this_thread.held_wakeups = list[Call]()
    try:
        yield
    finally:
        _this_thread.held_wakeups = None
        for wake in held:
            with suppress(LoopEnded):
                wake()


def _run(target: Call, ended: Event) -> None:
    try:
        target()
    finally:
        ended.set()


def _run_beside_gevent(target: Call, ended: Event) -> None:
    try:
        _run(target, ended)
    finally:
        # A socket that was used in this thread has created a gevent hub for it.
        hub: Any = import_gevent().get_hub()
        hub.destroy(destroy_loop=True)
