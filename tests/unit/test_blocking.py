"""Blocking calls beside an event loop: in which threads, and what never waits for them."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextvars import ContextVar
from functools import partial

import pytest
from anyio import fail_after

from aioabort.concurrency.blocking import BlockingThreads, run_blocking
from tests.support.waiting import BOUND, until

number: ContextVar[int] = ContextVar("number")


@pytest.fixture
async def one_thread() -> AsyncIterator[BlockingThreads]:
    threads = BlockingThreads("test")
    yield threads
    threads.stop()


def run(program: str) -> list[str]:
    """Return the lines that a process of its own prints."""
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=BOUND
    ).stdout.splitlines()


async def test_one_thread_makes_all_calls(one_thread: BlockingThreads) -> None:
    """A backend that is bound to its thread is made and used in the same one."""
    calls = (one_thread.run(threading.get_ident) for _ in range(20))
    idents = set(await asyncio.gather(*calls))
    assert len(idents) == 1
    assert threading.get_ident() not in idents


async def test_so_many_calls_run_at_once() -> None:
    """Three threads make three calls at once, and are kept for the next three."""
    threads = BlockingThreads("test", 3)
    met = threading.Barrier(3)

    def meet() -> int:
        met.wait(BOUND)
        return threading.get_ident()

    try:
        first, second = [
            await asyncio.gather(*(threads.run(meet) for _ in range(3)))
            for _ in range(2)
        ]
    finally:
        threads.stop()
    assert len(set(first)) == 3
    assert set(first) == set(second)


async def test_errors_are_raised(one_thread: BlockingThreads) -> None:
    """The caller gets the error, and the thread makes the next call."""
    with pytest.raises(KeyError):
        await one_thread.run(partial({}.pop, "missing"))
    with pytest.raises(RuntimeError, match="StopIteration"):
        await one_thread.run(partial(next, iter(())))
    assert await one_thread.run(lambda: 1) == 1


@pytest.mark.parametrize("way", ["one thread", "shared"])
async def test_calls_see_the_context(one_thread: BlockingThreads, way: str) -> None:
    """Tracing finds its span in the call."""
    number.set(7)
    if way == "shared":
        assert await run_blocking(number.get, "aioabort-test") == 7
    else:
        assert await one_thread.run(number.get) == 7


async def test_a_cancelled_call_is_not_made(one_thread: BlockingThreads) -> None:
    """Calls that are cancelled before a thread takes them do not pile up.

    a call blocks the thread | another waits, and is cancelled | the first one ends
    """
    begun, may_end = threading.Event(), threading.Event()
    made: list[str] = []

    def block() -> None:
        begun.set()
        may_end.wait(BOUND)
        made.append("first")

    first = asyncio.create_task(one_thread.run(block))
    await until(begun.is_set)
    second = asyncio.create_task(one_thread.run(lambda: made.append("second")))
    await asyncio.sleep(0)
    second.cancel()
    first.cancel()
    with fail_after(BOUND):
        await asyncio.wait([first, second])
    may_end.set()
    await one_thread.run(lambda: made.append("third"))
    assert made == ["first", "third"]


HELD = """
import asyncio, time
from aioabort.concurrency.blocking import BlockingThreads, run_blocking
async def main():
    frozen = lambda: time.sleep(3600)
    for call in (BlockingThreads("x").run(frozen), run_blocking(frozen, "x")):
        try:
            async with asyncio.timeout(0.1):
                await call
        except TimeoutError:
            print("late")
asyncio.run(main())
"""


def test_the_end_of_the_process_does_not_wait() -> None:
    """A call that never returns holds neither the end of the loop nor the exit."""
    assert run(HELD) == ["late", "late"]


GREEN = """
from gevent import monkey; monkey.patch_all()
import asyncio, gevent
from aioabort.concurrency.blocking import BlockingThreads, run_blocking
from aioabort.concurrency.loop_thread import LoopThread
ident = monkey.get_original("threading", "get_ident")
def rest():
    gevent.sleep(0.01)
    return ident()
async def compare():
    shared = await run_blocking(rest, "x")
    threads = BlockingThreads("x")
    bound = {await threads.run(rest) for _ in range(3)}
    threads.stop()
    return shared, bound, ident()
thread = LoopThread("loop", asyncio.Event.wait)
shared, bound, of_loop = thread.call(compare)
print(shared == ident(), len(bound), bound.isdisjoint({shared, of_loop}))
print(asyncio.run(run_blocking(rest, "x")) == ident())
"""


def test_under_gevent_each_call_stays_in_its_thread() -> None:
    """A socket of gevent's works in the thread only that has made it.

    So Celery's shared connections are used by greenlets of the program's thread, where
    tasks use them, and a backend of our own in one real thread, which lives on.
    """
    assert run(GREEN) == ["True 1 True", "True"]
