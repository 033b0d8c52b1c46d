"""Real threads beside greenlets, in processes that gevent has patched."""

import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from aioabort import AbortableTask, threads

PATCHED = "from gevent import monkey; monkey.patch_all()"

WAIT = """
from aioabort import threads
{late}
rounds = 0
for _ in range(1000):
    asked, answered = threads.event(), threads.event()
    def answer():
        asked.wait()
        answered.set()
    ended = threads.start(answer, "answer")
    asked.set()
    assert answered.wait(5)
    assert ended.wait(5)
    rounds += 1
nobody = threads.event()
assert not nobody.wait(0.01)
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
    """Real threads and greenlets wake each other, and nobody waits in vain."""
    assert run(program) == "1000"


def test_eventlet_is_refused(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Under eventlet, tasks run and cannot be aborted; a coroutine does not begin."""
    patcher = SimpleNamespace(is_monkey_patched=lambda module: module == "thread")
    monkeypatch.setitem(sys.modules, "eventlet.patcher", patcher)

    @app.task(bind=True, base=AbortableTask, shared=False)
    def check(self: AbortableTask[..., bool]) -> bool:
        return self.is_aborted(task_id="another")

    @app.task(base=AbortableTask, shared=False)
    async def crawl() -> None: ...

    assert check.apply().get() is False
    assert "the eventlet pool is not supported" in caplog.text
    assert isinstance(crawl.apply().result, ImproperlyConfigured)


def test_a_thread_that_ends_takes_no_signal() -> None:
    """What the main thread holds off waits for it.

    Closes: a prefork child holds SIGTERM off while it has the lock of the pool's results
    | SIGTERM, taken by a thread that is about to end | the lock is never given back
    """
    held_off: list[set[int]] = []

    class Ended(threading.Event):
        def set(self) -> None:
            held_off.append({*signal.pthread_sigmask(signal.SIG_BLOCK, ())})
            super().set()

    ended = Ended()
    threading.Thread(target=threads._run, args=(lambda: None, ended)).start()

    assert ended.wait(5)
    assert signal.SIGTERM in held_off[0]
