"""The main process records outcomes in a thread, while other threads fork."""

import subprocess
import sys

from anyio import fail_after, open_process

from aioabort import AbortClient
from tests.support.databases import celery_url
from tests.support.network import Network
from tests.support.waiting import BOUND

RECORD = """
import sys
from celery import Celery
from celery.app.task import Context
from aioabort import AbortableTask
from aioabort.worker.main_process import recorder

app = Celery("main", broker="memory://", backend=sys.argv[1])
app.conf.aioabort_dsn = sys.argv[2]

@app.task(base=AbortableTask)
def task(): ...

task.backend.mark_as_revoked("killed", "terminated")  # as Celery has done by then
before = set(sys.modules)
ended = recorder.EndedTask(task, Context(id="killed"), "killed")
recorder.record_outcome(ended)
assert recorder.recorder.wait(30)
print(sorted(sys.modules.keys() - before))
"""

#: Each process is as the main one before it has recorded anything.
FORKS = """
import os, signal, ssl, sys, threading, time
from aioabort.concurrency import fork_gate
from aioabort.concurrency.fork_gate import run_between_forks

fork_gate.LONGEST_WAIT = 3_600

async def connect():
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

def status_of(act):
    child = os.fork()
    if not child:
        signal.alarm(10)
        act()
        os._exit(0)
    return os.waitpid(child, 0)[1]

def fork_while_connecting():
    thread = threading.Thread(target=lambda: run_between_forks(connect()))
    thread.start()
    end = time.perf_counter() + delay
    while time.perf_counter() < end:
        pass
    os._exit(status_of(lambda: run_between_forks(connect())) != 0)

for step in range(60):
    delay = step * 0.0001
    if status_of(fork_while_connecting):
        sys.exit(f"a child that was forked after {delay:.4f} s waits for ever")
"""

#: Exits with 1 if a child was forked in the middle of a step.
FORK = """
import os, sys, threading
from aioabort.concurrency import fork_gate
from aioabort.concurrency.fork_gate import run_between_forks

fork_gate.LONGEST_WAIT = 3_600

held, stepping, forked = threading.Lock(), threading.Event(), threading.Event()

async def step():
    with held:
        stepping.set()
        # If the fork does not wait, it is over by then.
        forked.wait(0.5)

thread = threading.Thread(target=lambda: run_between_forks(step()))
thread.start()
stepping.wait()
child = os.fork()
if not child:
    os._exit(held.locked())
forked.set()
thread.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

#: Forks while a loop waits for what comes after the fork, and runs one in the child.
AWAIT = """
import asyncio, os, sys, threading
from aioabort.concurrency import fork_gate

fork_gate.LONGEST_WAIT = 3_600
loops, waiting = [], asyncio.Event()

async def wait():
    loops.append(asyncio.get_running_loop())
    loops[0].call_soon(idle.set)
    await waiting.wait()

async def nothing():
    await asyncio.sleep(0)

idle = threading.Event()
thread = threading.Thread(target=lambda: fork_gate.run_between_forks(wait()))
thread.start()
idle.wait()
child = os.fork()
if not child:
    fork_gate.run_between_forks(nothing())
    os._exit(0)
loops[0].call_soon_threadsafe(waiting.set)
thread.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def run(script: str) -> tuple[int, str]:
    command = [sys.executable, "-W", "ignore:This process", "-c", script]
    done = subprocess.run(
        command, capture_output=True, check=False, text=True, timeout=BOUND * 6
    )
    return done.returncode, done.stderr


def test_fork_while_the_thread_connects() -> None:
    """A child that is forked while a thread connects can connect, too.

    Closes: the thread uses OpenSSL, under its locks | fork | the child's agent waits
    for a lock that is never released
    """
    assert run(FORKS) == (0, "")


def test_a_fork_waits_for_the_end_of_a_step() -> None:
    """No child inherits a lock that the thread holds while it does not await.

    Closes: the thread takes a lock | fork | the child waits for it
    """
    assert run(FORK) == (0, "")


def test_a_fork_does_not_wait_for_what_is_awaited() -> None:
    """A server that does not answer delays no fork, and the child has a loop."""
    assert run(AWAIT) == (0, "")


async def test_recording_imports_nothing(client: AbortClient, dsn: str) -> None:
    """A child that is forked at any moment can do what the thread was doing.

    Not even when PostgreSQL was away at first.

    Closes: the thread imports a module for the first time | fork | the child's agent
    needs the module, and waits for the lock of an import that never ends
    """
    network = Network(dsn)
    await network.mend()
    await network.cut()
    await client.abort("killed")
    command = [sys.executable, "-c", RECORD, celery_url(dsn), network.dsn]
    with fail_after(BOUND):
        async with await open_process(command) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            async for told in process.stderr:
                if b"not recorded yet" in told:
                    break
            await network.mend()
            imported = b"".join([piece async for piece in process.stdout])
            assert imported == b"[]\n"
    await network.cut()

    request = (await client.snapshot("killed")).request
    assert request is not None
    assert request.outcome == "killed"
