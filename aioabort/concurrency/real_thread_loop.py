"""An event loop for a real thread of ours."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from selectors import BaseSelector
from typing import TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class RealThreadLoop(asyncio.SelectorEventLoop):
    """An event loop that starts a daemon thread for each call of its default executor.

    asyncio looks up the names of hosts in that executor. Python ends its own executors
    before it calls atexit functions. From 3.12 on, an executor of asyncio's needs a new
    thread to end, and none can be started at that time.
    """

    def __init__(
        self,
        start_thread: Callable[[Callable[[], object], str], object],
        selector: BaseSelector | None = None,
    ) -> None:
        super().__init__(selector)
        self._start_thread = start_thread

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Run *func* in *executor*, or in a thread of its own."""
        if executor is not None:
            return super().run_in_executor(executor, func, *args)
        future: asyncio.Future[T] = self.create_future()
        run = partial(self._run_into, future, partial(func, *args))
        self._start_thread(run, "aioabort-executor")
        return future

    def _run_into(self, future: asyncio.Future[T], act: Callable[[], T]) -> None:
        try:
            settle = partial(future.set_result, act())
        except BaseException as error:  # noqa: BLE001 - the awaiting task raises it
            settle = partial(future.set_exception, error)
        # The loop may be closed by now; then no coroutine awaits the result.
        with suppress(RuntimeError):
            self.call_soon_threadsafe(lambda: future.done() or settle())
