"""The verbs for code without an event loop, in this process and in others."""

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from anyio import to_thread
from celery import Celery, states
from celery.exceptions import ImproperlyConfigured
from celery.result import AsyncResult, GroupResult

from aioabort import (
    AbortClient,
    AioabortError,
    ClientClosed,
    InvalidRequest,
    WaitTimeout,
    sync,
)
from tests.integration.steps import CONNECTIONS
from tests.support.databases import celery_url
from tests.support.network import Network

PROGRAM = """
import os, sys, threading
{first}
from celery import Celery
from aioabort import sync

app = Celery("tests", broker="memory://", backend=sys.argv[1])
"""

FORK = """
print(sync.abort("one").answer, flush=True)
child = os.fork()
if not child:
    print(sync.abort("one").answer, sync.abort("two").answer, flush=True)
    os._exit(0)
os.waitpid(child, 0)
names = [thread.name for thread in threading.enumerate()]
print(sync.abort("two").answer, names.count("aioabort-sync"))
"""

OTHER_THREAD = """
def abort(**options):
    try:
        print(sync.abort("one", **options).answer)
    except Exception as error:
        print(error)

def in_thread(**options):
    thread = threading.Thread(target=abort, kwargs=options)
    thread.start()
    thread.join()

in_thread()
in_thread(app=app)
app.set_default()
in_thread()
"""

GEVENT = """
import gevent
beats = 0
def beat():
    global beats
    while True:
        gevent.sleep(0.01)
        beats += 1
gevent.spawn(beat)
print(sync.abort("one", app=app).answer)
try:
    sync.wait("one", 0.5, app=app)
except TimeoutError:
    print(beats > 10)
print([sync.snapshot("one").state for _ in range(3)])
"""


AT_EXIT = """
import atexit
from aioabort import ClientClosed
if {used_before}:
    sync.snapshot("other", app=app)
def bye():
    try:
        print(sync.abort("one", app=app).answer, sync.snapshot("one", app=app).state)
    except ClientClosed:
        print("closed")
atexit.register(bye)
if {used_after}:
    sync.snapshot("other", app=app)
"""


@pytest.fixture(scope="module", autouse=True)
def no_loop_left_behind() -> Iterator[None]:
    """A client left there would tell the metrics of later tests that it is cut off."""
    yield
    sync.close()


def background_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "aioabort-sync"]


def run(program: str, dsn: str, first: str = "") -> str:
    """Return what a process of its own prints."""
    code = PROGRAM.format(first=first) + program
    done = subprocess.run(
        # From 3.12 on, Python warns of a fork beside threads.
        [sys.executable, "-W", "ignore:This process", "-c", code, celery_url(dsn)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_verbs(app: Celery, task_id: str) -> None:
    """Each is as that of the client, with the app of the result or a given one."""
    result: AsyncResult[Any] = AsyncResult(task_id, app=app)
    receipt = sync.abort(result, reason="why", requested_by="alice")
    assert (receipt.task_id, receipt.answer) == (task_id, "requested")
    again = sync.abort(task_id, app=app)
    assert again.request == receipt.request
    with pytest.raises(WaitTimeout):
        sync.wait(task_id, 0.05, app=app)
    app.backend.store_result(task_id, "value", states.SUCCESS)
    assert sync.wait(result) == "value"
    assert sync.snapshot(result).state == "SUCCESS"
    assert sync.snapshot(task_id, app=app).request is not None


def test_many_are_aborted(app: Celery) -> None:
    """A group and a list are known by the app of their results."""
    results: list[AsyncResult[Any]] = [
        AsyncResult(str(uuid4()), app=app) for _ in range(3)
    ]
    receipts = sync.abort(GroupResult("group", results[:2]))
    assert [receipt.answer for receipt in receipts] == ["requested"] * 2
    receipts = sync.abort([results[0].id, results[1], results[2]])
    assert [receipt.answer for receipt in receipts] == [
        *("requested_before", "requested_before", "requested")
    ]
    assert sync.abort([], app=app) == []


def test_errors_are_raised_here(app: Celery, make_app: Any, dsn: str) -> None:
    """What the client raises reaches the caller, who can go on."""
    with pytest.raises(InvalidRequest):
        sync.abort("", app=app)
    disabled = Celery("t", broker="memory://", set_as_current=False)
    with pytest.raises(ImproperlyConfigured, match="needs PostgreSQL"):
        sync.abort("id", app=disabled)
    with pytest.raises(AioabortError):
        sync.snapshot("id", app=make_app(dsn.replace("/aioabort_", "/missing_")))
    assert sync.abort("id", app=app).is_requested


def test_threads_share_one_loop(app: Celery, dsn: str) -> None:
    """Many threads use it at once; it is one thread more, and few connections."""
    with ThreadPoolExecutor(20) as pool:
        ids = [f"task {number}" for number in range(200)]
        receipts = list(pool.map(lambda each: sync.abort(each, app=app), ids))
    assert [receipt.task_id for receipt in receipts] == ids
    assert background_threads() == ["aioabort-sync"]
    with psycopg.connect(dsn) as connection:
        [count] = connection.execute(CONNECTIONS).fetchone() or [None]
    assert 2 <= count <= 11


def test_closed_and_used_again(app: Celery, task_id: str, dsn: str) -> None:
    """Connections and the thread are gone, who waits is told, and a call begins anew.

    thread: waits | close() | thread: ClientClosed | abort(): connects
    """
    begun = threading.Event()

    async def wait(client: AbortClient) -> Any:
        begun.set()
        return await client.wait(task_id)

    sync.abort(task_id, app=app)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(sync._run, app, wait)
        assert begun.wait(5)
        sync.close()
        with pytest.raises(ClientClosed):
            waiting.result(5)
    assert background_threads() == []
    with psycopg.connect(dsn) as connection:
        assert connection.execute(CONNECTIONS).fetchone() == (0,)
    assert sync.abort(task_id, app=app).answer == "requested_before"
    assert background_threads() == ["aioabort-sync"]
    sync.close()
    sync.close()


async def test_an_event_loop_is_not_blocked(app: Celery) -> None:
    """In a coroutine the verbs that block are refused, and those to await are named."""
    with pytest.raises(AioabortError, match="await the methods"):
        sync.abort("id", app=app)
    receipt = await asyncio.to_thread(sync.abort, "id", app=app)
    assert receipt.is_requested


def test_a_signal_ends_the_wait(app: Celery, task_id: str) -> None:
    """What a signal's handler raises is raised, as a time limit is in a task."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            sync.wait(task_id, app=app)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert sync.abort(task_id, app=app).is_requested


def test_a_fork_starts_its_own(dsn: str) -> None:
    """The child has a thread and connections of its own, and the parent keeps its own.

    parent: connected | fork | child: connects | child: gone | parent: goes on
    """
    lines = run(FORK, dsn).splitlines()
    assert lines == ["requested", "requested_before requested", "requested_before 1"]


def test_another_thread_has_to_name_its_app(dsn: str) -> None:
    """Celery's current app is per thread; ``app=`` and ``set_default()`` both help."""
    refused, *answers = run(OTHER_THREAD, dsn).splitlines()

    assert "'default'" in refused
    assert "pass app=, or call set_default()" in refused
    assert answers == ["requested", "requested_before"]


def test_it_works_under_gevent(dsn: str) -> None:
    """The loop runs in a real thread, and waiting lets other greenlets run."""
    output = run(GEVENT, dsn, "from gevent import monkey; monkey.patch_all()")
    assert output.splitlines() == [
        "requested",
        "True",
        "['ABORTED', 'ABORTED', 'ABORTED']",
    ]


@pytest.mark.parametrize("used_before", [True, False])
@pytest.mark.parametrize("used_after", [True, False])
async def test_it_works_at_the_exit_of_the_interpreter(
    network: Network, used_before: bool, used_after: bool
) -> None:
    """Also by the name of a host, which a thread looks up; or the client is closed.

    Python has ended its own executors by then, and later releases start no thread.
    """
    program = AT_EXIT.format(used_before=used_before, used_after=used_after)
    output = await to_thread.run_sync(run, program, by_name(network))
    assert output in {"requested ABORTED\n", "closed\n"}
    if sys.version_info < (3, 12):
        assert output == "requested ABORTED\n"


async def test_a_script_that_ends_at_once_prints_nothing_else(
    network: Network,
) -> None:
    """The end of the script interrupts a notification, which needs a connection.

    abort() is committed, the connection of the notifier is being opened | exit
    """
    program = "print(sync.abort('one', app=app).answer)"
    assert await to_thread.run_sync(run, program, by_name(network)) == "requested\n"


def by_name(network: Network) -> str:
    """Return the address of the database with the name of its host."""
    named = network.dsn.replace("127.0.0.1", "localhost")
    assert named != network.dsn
    return named


def test_importing_it_starts_nothing() -> None:
    """No thread, no connection, until the first verb."""
    code = "import threading, aioabort.sync; print(threading.active_count())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "1\n"
