"""Coroutines on the tasks' loop: cancelled once, in the right place, and given time."""

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest
from celery import Celery, Task, signals

from aioabort import AbortableTask, AbortRequest, AbortToken, TaskAborted
from aioabort.exceptions import CoroutineCancelled
from aioabort.worker import coroutines
from aioabort.worker.coroutines import run_coroutine

REQUEST = AbortRequest(
    task_id="id", requested_at=datetime(2026, 1, 1, tzinfo=UTC), reason="why"
)


@pytest.fixture
def task() -> Task:
    """A task, of no worker."""
    app = Celery("tests", broker="memory://", set_as_current=False)

    @app.task(base=AbortableTask, shared=False, lazy=False)
    async def doubling(number: int) -> int:
        await asyncio.sleep(0)
        return number * 2

    return doubling


@pytest.fixture
def token() -> AbortToken:
    """A token that nobody has aborted."""
    return AbortToken("id")


async def sleep_for_ever() -> None:
    await asyncio.Event().wait()


async def test_called_directly(task: Callable[[int], Awaitable[int]]) -> None:
    """A task that is called as a function is a coroutine of the caller's loop."""
    assert await task(21) == 42


def test_abort_before_the_first_step(task: Task, token: AbortToken) -> None:
    """Nothing is lost, and Python does not warn of a coroutine that never ran."""
    held, gate = threading.Event(), threading.Event()

    async def hold() -> None:
        held.set()
        gate.wait(10)

    token.abort(REQUEST)
    # The loop is held up, so that it learns of the task and of its end at once.
    other = (task, AbortToken("other"), hold())
    threading.Thread(target=run_coroutine, args=other).start()
    assert held.wait(10)
    threading.Timer(0.05, gate.set).start()
    with pytest.raises(TaskAborted, match="why"):
        run_coroutine(task, token, sleep_for_ever())
    # A warning would be an error here.
    gc.collect()


def test_cleanup_after_its_own_look(task: Task) -> None:
    """A coroutine that stops by ``raise_if_aborted()`` cleans up undisturbed.

    agent: aborted | coroutine: raise_if_aborted, finally, await | agent: cancels
    """
    cleaned: list[int] = []

    async def body(token: AbortToken) -> None:
        try:
            while True:
                token.raise_if_aborted()
                await asyncio.sleep(0)
        finally:
            await asyncio.sleep(0.005)
            cleaned.append(1)

    for _ in range(20):
        token = AbortToken("id")
        threading.Timer(0.002, token.abort, [REQUEST]).start()
        with pytest.raises(TaskAborted):
            run_coroutine(task, token, body(token))

    assert len(cleaned) == 20


def test_look_that_is_swallowed(
    task: Task, token: AbortToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coroutine that catches its own TaskAborted and goes on is cancelled later."""
    monkeypatch.setattr(coroutines, "CLEANUP_TIME", 0.05)

    async def body() -> None:
        while True:
            try:
                token.raise_if_aborted()
            except TaskAborted:
                await sleep_for_ever()
            await asyncio.sleep(0)

    threading.Timer(0.01, token.abort, [REQUEST]).start()
    with pytest.raises(TaskAborted):
        run_coroutine(task, token, body())


def test_cancelled_by_itself(task: Task, token: AbortToken) -> None:
    """A coroutine that cancels itself has failed: nobody has aborted it."""

    async def body() -> None:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        await sleep_for_ever()

    with pytest.raises(CoroutineCancelled):
        run_coroutine(task, token, body())


def test_many_cancellations_swallowed(
    task: Task, token: AbortToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that swallows them is asked again and again, and keeps its value."""
    monkeypatch.setattr(coroutines, "CLEANUP_TIME", 0.02)
    asked: list[int] = []

    async def body() -> str:
        while len(asked) < 3:
            try:
                await sleep_for_ever()
            except asyncio.CancelledError:
                asked.append(1)
        return "kept"

    threading.Timer(0.01, token.abort, [REQUEST]).start()
    assert run_coroutine(task, token, body()) == "kept"
    assert token.seen


def test_a_child_that_ends_has_no_thread_left(task: Task, token: AbortToken) -> None:
    """It would take the signals that the main thread holds off; nothing runs by then."""

    async def here() -> threading.Thread:
        return threading.current_thread()

    thread = run_coroutine(task, token, here())
    signals.worker_process_shutdown.send(sender=None, pid=0, exitcode=0)
    thread.join(5)

    assert not thread.is_alive()
    assert run_coroutine(task, AbortToken("later"), here()) is not thread
