"""Coroutines on the loop of the tasks: cancelled once, and given time to clean up."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable

import pytest
from celery import Celery, Task, signals

from aioabort import AbortableTask, TaskAborted
from aioabort.exceptions import CoroutineCancelled
from aioabort.timing import Timing
from aioabort.worker.execution.coroutines import run_coroutine
from aioabort.worker.live_token import LiveToken
from tests.support.runs import PENDING
from tests.support.waiting import BOUND

TIMING = Timing()


@pytest.fixture
def task() -> Task:
    """A task that no worker runs."""
    app = Celery("tests", broker="memory://", set_as_current=False)

    @app.task(base=AbortableTask, shared=False, lazy=False)
    async def doubling(number: int) -> int:
        await asyncio.sleep(0)
        return number * 2

    return doubling


@pytest.fixture
def token() -> LiveToken:
    """A token that is not aborted."""
    return LiveToken("id")


class ObservedToken(LiveToken):
    """A token that tells when an abort of it cancels the coroutine."""

    def __init__(self) -> None:
        super().__init__("id")
        self.has_stop = threading.Event()

    def stop_with(self, stop: Callable[[], None] | None) -> None:
        """Tell it."""
        super().stop_with(stop)
        self.has_stop.set()


class ManualToken(ObservedToken):
    """A token whose abort calls nothing: the test decides when the agent does."""

    stop: Callable[[], None]

    def stop_with(self, stop: Callable[[], None] | None) -> None:
        """Keep *stop* for the test."""
        if stop is not None:
            self.stop = stop
            self.has_stop.set()


async def sleep_for_ever() -> None:
    await asyncio.Event().wait()


async def test_called_directly(task: Callable[[int], Awaitable[int]]) -> None:
    """A task that is called as a function is a coroutine of the caller's loop."""
    assert await task(21) == 42


def test_abort_before_the_first_step(task: Task) -> None:
    """The abort is not lost, and Python does not warn of a coroutine that never ran.

    loop: blocked | coroutine: queued | agent: cancels it | loop: goes on
    """
    token, held = ObservedToken(), threading.Event()
    token.abort(PENDING)

    async def hold() -> None:
        held.set()
        token.has_stop.wait(BOUND)

    other = (task, LiveToken("other"), hold(), TIMING)
    holder = threading.Thread(target=run_coroutine, args=other)
    holder.start()
    assert held.wait(BOUND)
    with pytest.raises(TaskAborted, match="why"):
        run_coroutine(task, token, sleep_for_ever(), TIMING)
    holder.join()
    # A warning would be an error here.
    gc.collect()


def test_cleanup_after_its_own_check(task: Task) -> None:
    """A coroutine that stops by ``raise_if_aborted()`` cleans up undisturbed.

    agent: aborted | coroutine: raise_if_aborted, finally, await | agent: cancels
    """
    token = ManualToken()
    is_clean: list[bool] = []

    async def body() -> None:
        assert token.has_stop.wait(BOUND)
        token.abort(PENDING)
        try:
            token.raise_if_aborted()
        finally:
            token.stop()
            # Time for the cancellation, which the agent has put into the loop's queue.
            for _ in range(3):
                await asyncio.sleep(0)
            is_clean.append(True)

    with pytest.raises(TaskAborted, match="why"):
        run_coroutine(task, token, body(), TIMING)

    assert is_clean


def test_check_that_is_swallowed(task: Task, token: LiveToken) -> None:
    """A coroutine that catches its own TaskAborted and goes on is cancelled later."""

    async def body() -> None:
        token.abort(PENDING)
        try:
            token.raise_if_aborted()
        except TaskAborted:
            await sleep_for_ever()

    with pytest.raises(TaskAborted):
        run_coroutine(task, token, body(), Timing(cleanup_timeout=0.05))


def test_cancelled_by_itself(task: Task, token: LiveToken) -> None:
    """A coroutine that cancels itself has failed: it was not aborted."""

    async def body() -> None:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        await sleep_for_ever()

    with pytest.raises(CoroutineCancelled):
        run_coroutine(task, token, body(), TIMING)


def test_many_cancellations_swallowed(task: Task, token: LiveToken) -> None:
    """A coroutine that swallows them is cancelled again and again, and keeps its value."""
    cancelled: list[int] = []

    async def body() -> str:
        token.abort(PENDING)
        while len(cancelled) < 3:
            try:
                await sleep_for_ever()
            except asyncio.CancelledError:
                cancelled.append(1)
        return "kept"

    timing = Timing(cleanup_timeout=0.02)
    assert run_coroutine(task, token, body(), timing) == "kept"
    assert token.seen


def test_cancelled_after_the_second_shield(task: Task) -> None:
    """A shield that delays the cancellation of an abort does not lose it.

    shield 1: aborted, ends | agent: cancels, in shield 2 | shield 2: ends
    """
    token = ObservedToken()

    async def body() -> None:
        assert token.has_stop.wait(BOUND)
        with token.shield():
            token.abort(PENDING)
        with token.shield():
            for _ in range(3):
                await asyncio.sleep(0)
        async with asyncio.timeout(BOUND):
            await sleep_for_ever()

    with pytest.raises(TaskAborted, match="why"):
        run_coroutine(task, token, body(), TIMING)


def test_token_does_not_keep_the_coroutine(task: Task, token: LiveToken) -> None:
    """A token and its coroutine are freed without the garbage collector."""

    async def body() -> None:
        await asyncio.sleep(0)

    coroutine = body()
    freed = weakref.ref(coroutine)
    gc.disable()
    try:
        run_coroutine(task, token, coroutine, TIMING)
        del coroutine
        # When the loop has run this one, it is done with the other.
        run_coroutine(task, LiveToken("later"), body(), TIMING)
        assert freed() is None
    finally:
        gc.enable()


def test_a_child_that_ends_has_no_thread_left(task: Task, token: LiveToken) -> None:
    """A thread that is left would take the signals that the main thread blocks."""

    async def here() -> threading.Thread:
        return threading.current_thread()

    thread = run_coroutine(task, token, here(), TIMING)
    signals.worker_process_shutdown.send(sender=None, pid=0, exitcode=0)
    thread.join(5)

    assert not thread.is_alive()
    assert run_coroutine(task, LiveToken("later"), here(), TIMING) is not thread
