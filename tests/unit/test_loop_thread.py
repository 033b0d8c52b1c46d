"""Event loops in threads, and real threads in processes that gevent has patched."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from aioabort import AbortableTask
from aioabort.concurrency import loop_thread
from aioabort.concurrency.loop_thread import LoopEnded, LoopThread

PATCHED = "from gevent import monkey; monkey.patch_all()"

WAIT = """
from aioabort.concurrency import loop_thread
{late}
rounds = 0
for _ in range(1000):
    asked, answered = loop_thread.new_event(), loop_thread.new_event()
    def answer():
        asked.wait()
        answered.set()
    ended = loop_thread.start_thread(answer, "answer")
    asked.set()
    assert answered.wait(5)
    assert ended.wait(5)
    rounds += 1
never_set = loop_thread.new_event()
assert not never_set.wait(0.01)
print(rounds)
"""


def run(program: str) -> str:
    """Return what a process of its own prints."""
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=60
    ).stdout.strip()


@pytest.mark.parametrize(
    "program",
    [
        WAIT.format(late=""),
        f"{PATCHED}\n{WAIT.format(late='')}",
        WAIT.format(late=PATCHED),
    ],
    ids=["unpatched", "patched", "patched after the import"],
)
def test_threads_wait_for_each_other(program: str) -> None:
    """Real threads and greenlets wake each other, a thousand times."""
    assert run(program) == "1000"


def test_eventlet_is_refused(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Under eventlet, tasks run and cannot be aborted; a coroutine does not begin."""
    patcher = SimpleNamespace(is_monkey_patched=lambda module: module == "thread")
    monkeypatch.setitem(sys.modules, "eventlet.patcher", patcher)
    # Results that can be read without a server, as Celery's own is_aborted() reads them.
    app.conf.update(
        result_backend="cache+memory://",
        aioabort_dsn="postgresql://nowhere.invalid/none",
    )

    @app.task(bind=True, base=AbortableTask, shared=False)
    def check(self: AbortableTask[..., bool]) -> bool:
        return self.is_aborted(task_id="another")

    @app.task(base=AbortableTask, shared=False)
    async def crawl() -> None: ...

    assert check.apply().get() is False
    assert "the eventlet pool is not supported" in caplog.text
    assert isinstance(crawl.apply().result, ImproperlyConfigured)


IN_UVLOOP = """
import asyncio, uvloop
uvloop.install()
from aioabort.concurrency.loop_thread import LoopThread

async def run():
    process = await asyncio.create_subprocess_exec("true")
    return await process.wait()

thread = LoopThread("test", asyncio.Event.wait)
print(type(thread.loop).__module__, thread.call(run))
thread.stop(5)
"""


def test_coroutines_can_start_subprocesses_beside_uvloop() -> None:
    """Python 3.11 watches them by uvloop's policy, which serves uvloop's loops alone."""
    assert run(IN_UVLOOP) == "uvloop 0"


class Interrupted(Exception):
    """What a signal handler raises, as Celery's does at a soft time limit."""


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    """A thread with an event loop."""
    thread = LoopThread("test", asyncio.Event.wait)
    yield thread
    thread.stop(5)


@pytest.fixture
def signal_raises() -> Iterator[None]:
    """SIGUSR1 raises Interrupted in the main thread."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    yield
    signal.signal(signal.SIGUSR1, before)


def test_a_call_returns_or_raises_what_the_loop_does(thread: LoopThread) -> None:
    """The coroutine runs in the loop's thread."""

    async def ident() -> int:
        return threading.get_ident()

    async def fail() -> None:
        raise ConnectionError("away")

    assert thread.call(ident) != threading.get_ident()
    with pytest.raises(ConnectionError, match="away"):
        thread.call(fail)


@pytest.mark.usefixtures("signal_raises")
def test_an_interrupted_wait_cancels_the_call(thread: LoopThread) -> None:
    """Closes: call() | a soft time limit raises | the coroutine goes on, unknown to all."""
    ended = threading.Event()

    async def never_ends() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(Interrupted):
        thread.call(never_ends)
    assert ended.wait(5)


def test_an_interrupt_after_the_post_cancels_the_call(
    thread: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closes: call() posts the coroutine | a signal handler raises before the wait."""
    begun, ended = threading.Event(), threading.Event()
    post = thread.post

    async def never_ends() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    def interrupted_once(call: loop_thread.Call) -> None:
        post(call)
        assert begun.wait(5)
        monkeypatch.setattr(thread, "post", post)
        raise Interrupted

    monkeypatch.setattr(thread, "post", interrupted_once)
    with pytest.raises(Interrupted):
        thread.call(never_ends)
    assert ended.wait(5)


def test_after_its_end_the_thread_refuses_calls(thread: LoopThread) -> None:
    """A second stop() is no error."""

    async def nothing() -> None: ...

    thread.stop(5)
    thread.stop(5)
    with pytest.raises(LoopEnded):
        thread.call(nothing)
    with pytest.raises(LoopEnded):
        thread.post(lambda: None)


def test_a_call_ends_with_the_thread(thread: LoopThread) -> None:
    """Closes: A: call() waits | B: stop() | A waits for ever."""
    begun = threading.Event()
    errors: list[BaseException] = []

    async def never_ends() -> None:
        begun.set()
        await asyncio.Event().wait()

    def call() -> None:
        try:
            thread.call(never_ends)
        except LoopEnded as error:
            errors.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    assert begun.wait(5)
    thread.stop(5)
    caller.join(5)
    assert len(errors) == 1


def test_a_call_that_the_loop_never_begins_ends(
    thread: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closes: A: posts its call | the loop closes before it begins it | A waits for ever."""
    monkeypatch.setattr(loop_thread, "LIVENESS_INTERVAL", 0.01)
    thread.stop(5)
    monkeypatch.setattr(thread, "post", lambda _call: None)
    with pytest.raises(LoopEnded):
        thread.call(asyncio.Event().wait)


def test_a_result_counts_even_if_the_thread_ends_right_after_it(
    thread: LoopThread,
) -> None:
    """Closes: A: its wait times out | the loop sets the result, the thread ends | A sees
    the end of the thread, and drops the result.
    """
    thread.stop(5)
    waits: list[float | None] = []

    class Answered:
        """An event that is set between the time-out and the next check."""

        def set(self) -> None: ...

        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return len(waits) > 1

    thread._wait_for(Answered())
    assert waits[1] == 0
