"""Calls from other threads to an event loop, and what their wake-ups may lose."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from aioabort.concurrency.loop_thread import (
    CallQueue,
    LoopEnded,
    LoopThread,
    batch_wakeups,
)


class Interrupted(Exception):
    """What a signal handler raises, as Celery's does at a soft time limit."""


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    """A thread with an event loop."""
    thread = LoopThread("test", asyncio.Event.wait)
    yield thread
    thread.stop(5)


@pytest.fixture
def wakeups(thread: LoopThread, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The wake-ups of the loop, in order."""
    posted: list[Any] = []
    post = thread.post

    def count(call: Any) -> None:
        posted.append(call)
        post(call)

    monkeypatch.setattr(thread, "post", count)
    return posted


def hold(thread: LoopThread) -> threading.Event:
    """Block the loop until the returned event is set."""
    is_held, go_on = threading.Event(), threading.Event()

    def block() -> None:
        is_held.set()
        assert go_on.wait(10)

    thread.post(block)
    assert is_held.wait(5)
    return go_on


def test_many_calls_wake_the_loop_once(thread: LoopThread, wakeups: list[Any]) -> None:
    """They are made in the order in which they were queued."""
    queue, made, done = CallQueue(thread), list[int](), threading.Event()
    go_on = hold(thread)
    wakeups.clear()
    for number in range(100):
        queue.put(lambda number=number: made.append(number))  # type: ignore[misc]
    queue.put(done.set)
    assert len(wakeups) == 1
    go_on.set()
    assert done.wait(5)
    assert made == list(range(100))


def test_a_call_that_is_queued_during_the_calls_is_made(thread: LoopThread) -> None:
    """Closes: loop: makes the last call | A: put() sees a wake-up under way."""
    queue, done = CallQueue(thread), threading.Event()
    queue.put(lambda: queue.put(done.set))
    assert done.wait(5)


def test_after_a_quiet_time_a_call_is_made_at_once(thread: LoopThread) -> None:
    """The gap separates calls; the first one does not wait for it."""
    queue, done = CallQueue(thread, gap=60.0), threading.Event()
    queue.put(done.set)
    assert done.wait(5)


def test_calls_within_the_gap_are_made_together_at_its_end(
    thread: LoopThread, wakeups: list[Any]
) -> None:
    """Later calls neither wake the loop again nor are made before the gap is over."""
    queue, first = CallQueue(thread, gap=0.5), threading.Event()
    moments: list[float] = []
    done = threading.Event()
    queue.put(lambda: moments.append(thread.loop.time()))
    queue.put(first.set)
    assert first.wait(5)
    wakeups.clear()
    for _ in range(10):
        queue.put(lambda: moments.append(thread.loop.time()))
    queue.put(done.set)
    assert len(wakeups) == 1
    assert done.wait(5)
    assert moments[1] - moments[0] >= 0.49
    assert moments[-1] - moments[1] < 0.4


def test_make_calls_does_not_wait_for_the_gap(thread: LoopThread) -> None:
    """The end of the process makes the queued calls at once."""
    queue, first, second = CallQueue(thread, 60.0), threading.Event(), threading.Event()
    queue.put(first.set)
    assert first.wait(5)
    queue.put(second.set)
    thread.post(queue.make_calls)
    assert second.wait(5)


def test_a_signal_that_interrupts_a_wakeup_loses_no_call(
    thread: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closes: A: put(), about to wake the loop | B: put() relies on that wake-up | A: a
    signal handler raises | B's call waits until a third thread queues one.
    """
    queue, done = CallQueue(thread), threading.Event()
    post = thread.post
    attempts: list[Any] = []

    def interrupted_once(call: Any) -> None:
        attempts.append(call)
        if len(attempts) == 1:
            queue.put(done.set)
            raise Interrupted
        post(call)

    monkeypatch.setattr(thread, "post", interrupted_once)
    with pytest.raises(Interrupted):
        queue.put(lambda: None)
    assert done.wait(5)


def test_a_call_that_raises_does_not_delay_the_next(thread: LoopThread) -> None:
    """Closes: loop: a call raises | the calls behind it wait for the next put()."""
    errors: list[object] = []
    thread.loop.set_exception_handler(lambda _, context: errors.append(context))
    queue, done = CallQueue(thread), threading.Event()
    go_on = hold(thread)
    queue.put(lambda: 1 / 0)
    queue.put(done.set)
    go_on.set()
    assert done.wait(5)
    assert len(errors) == 1


def test_a_call_to_a_thread_that_has_ended_raises() -> None:
    """Each of them, not only the first."""
    thread = LoopThread("test", asyncio.Event.wait)
    thread.stop(5)
    queue = CallQueue(thread)
    for _ in range(2):
        with pytest.raises(LoopEnded):
            queue.put(lambda: None)
    with batch_wakeups():
        queue.put(lambda: None)
    with pytest.raises(LoopEnded):
        queue.put(lambda: None)


def test_a_batch_wakes_each_loop_once_at_its_end(
    thread: LoopThread, wakeups: list[Any]
) -> None:
    """Within the block no loop is woken, so no call overtakes those behind it."""
    queue, done = CallQueue(thread), threading.Event()
    with batch_wakeups():
        queue.put(lambda: None)
        queue.put(done.set)
        assert wakeups == []
    assert done.wait(5)
    assert len(wakeups) == 1


def test_a_batch_concerns_its_own_thread_only(thread: LoopThread) -> None:
    """Closes: A: in a batch | B: put() waits for the end of A's batch."""
    queue, done = CallQueue(thread), threading.Event()
    with batch_wakeups():
        other = threading.Thread(target=queue.put, args=(done.set,))
        other.start()
        assert done.wait(5)
        other.join(5)
