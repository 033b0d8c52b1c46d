"""Blocking calls, such as Celery's, beside an event loop.

The threads are daemons: a server that does not answer never holds the end of the process.
anyio's and asyncio's own threads would, and under gevent they are greenlets, which never
run beside an event loop in a real thread.
"""

import asyncio
from _queue import SimpleQueue
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Final, TypeVar

from aioabort.concurrency.gevent import LoopBesideGevent, is_gevent_patched
from aioabort.concurrency.loop_thread import RLock, start_thread, thread_starter
from aioabort.concurrency.per_process import PerProcess

#: As many as Celery's default pool has connections to the broker.
THREADS = 10

T = TypeVar("T")

Call = Callable[[], None]


class BlockingThreads:
    """Real threads that make blocking calls for event loops, one call at a time each.

    They are started when they are needed, *size* at most, and kept until ``stop()``. With
    one thread, all calls are made by the same thread: the connections of some result
    backends must not be used by another one, under gevent above all.
    """

    def __init__(self, name: str, size: int = 1) -> None:
        self._name: Final = name
        self._size: Final = size
        # Not queue.SimpleQueue, which gevent replaces.
        self._calls: Final[SimpleQueue[Call | None]] = SimpleQueue()
        self._lock: Final = RLock()
        self._started = 0
        self._idle = 0

    async def run(self, call: Callable[[], T]) -> T:
        """Return the result of *call*, made in one of the threads.

        If this is cancelled, a call that has begun goes on, and no other one is made.
        """
        return await _await_call(call, self._put)

    def stop(self, last: Call | None = None) -> None:
        """Let the threads end when they have made the calls that were put before.

        *last* is the last call of one of them, if any was started.
        """
        with self._lock:
            if last is not None and self._started:
                self._calls.put(last)
            for _ in range(self._started):
                self._calls.put(None)

    def _put(self, call: Call) -> None:
        with self._lock:
            if self._idle:
                self._idle -= 1
            elif self._started < self._size:
                start_thread(self._make_calls, self._name)
                self._started += 1
            self._calls.put(call)

    def _make_calls(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            # If another call waits already, this thread takes it, and is not idle.
            with self._lock:
                self._idle += self._calls.empty()


async def run_blocking(call: Callable[[], T], purpose: str) -> T:
    """Return the result of *call*, made where Celery's shared connections can be used.

    That is in one of a few threads, which the process keeps for *purpose*: calls for
    another purpose do not wait for them. Under gevent it is a greenlet beside the other
    greenlets of the program: a connection belongs to the thread that opened it.
    """
    if is_gevent_patched():
        loop = asyncio.get_running_loop()
        if isinstance(loop, LoopBesideGevent):
            return await _await_call(call, loop.spawn)
        return await _await_call(call, thread_starter(purpose))
    make = partial(BlockingThreads, purpose, THREADS)
    return await _threads.get(purpose, make).run(call)


_threads: Final[PerProcess[str, BlockingThreads]] = PerProcess()


async def _await_call(call: Callable[[], T], put: Callable[[Call], object]) -> T:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    context = copy_context()

    def make_call() -> None:
        if future.cancelled():
            return
        try:
            settle = partial(future.set_result, context.run(call))
        except StopIteration as error:
            # A future refuses it, because it would end the awaiting coroutine.
            settle = partial(future.set_exception, RuntimeError(repr(error)))
        except BaseException as error:  # noqa: BLE001 - the awaiting task raises it
            settle = partial(future.set_exception, error)
        # The loop may be closed by now.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, future, settle)

    put(make_call)
    return await future


def _settle(future: "asyncio.Future[T]", settle: Callable[[], None]) -> None:
    if not future.done():
        settle()
