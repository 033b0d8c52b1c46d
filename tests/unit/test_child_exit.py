"""A prefork child that SIGTERM ends, with a thread beside its main one."""

import subprocess
import sys

PROGRAM = """
import os, signal, sys, threading, time
from contextlib import suppress
from billiard import queues
from billiard.pool import Pool
from celery.concurrency.prefork import process_destructor
from aioabort.worker.agent import agent

def is_reporting_its_end():
    return signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())

def send_slowly(queue, value):
    with queue._wlock:
        queue._writer.send_bytes(value)
        while is_reporting_its_end() and signal.SIGTERM not in signal.sigpending():
            time.sleep(0.01)

def wait_for_ever(pid_written):
    if {is_protected}:
        agent._stop_with_process()
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    os.write(pid_written, b"%d" % os.getpid())
    time.sleep(60)

# The main process answers before the lock is released.
queues.SimpleQueue.send_payload = send_slowly
pid_read, pid_written = os.pipe()
pool = Pool(2, on_process_exit=process_destructor)
pool.apply_async(wait_for_ever, (pid_written,))
pid = int(os.read(pid_read, 20))
os.kill(pid, signal.SIGTERM)
with suppress(ChildProcessError):  # the pool was faster
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
try:
    print(pool.apply_async(str, ("alive",)).get(timeout={timeout}))
except Exception as error:
    print(type(error).__name__)
sys.stdout.flush()
os.killpg(0, signal.SIGKILL)
"""


def run(*, is_protected: bool, timeout: float) -> str:
    """Return what the pool's other process answers after the first one has ended."""
    program = PROGRAM.format(is_protected=is_protected, timeout=timeout)
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
        # It ends with all of its processes.
        start_new_session=True,
    )
    return done.stdout.strip()


def test_the_lock_of_the_results_is_released() -> None:
    """The pool goes on when a child with threads was killed.

    child: SIGTERM, tells that it ends | main process: SIGTERM | a thread of the child
    takes it, as the main thread blocks it | the main thread holds the pool's lock
    """
    assert run(is_protected=True, timeout=30) == "alive"


def test_what_billiard_does_by_itself() -> None:
    """Without the handler the pool stands still: billiard blocks the main thread only."""
    assert run(is_protected=False, timeout=3) == "TimeoutError"
